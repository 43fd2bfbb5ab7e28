"""What test_ranks.py runs in one process, and by torchrun in two: three steps, then scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from unetrt.training.batches import Batches, BatchOptions
from unetrt.training.losses import LossOptions
from unetrt.training.masknet import MaskNet
from unetrt.training.options import Dice, TrainOptions
from unetrt.training.ranks import Ranks, joined_ranks, sync_batchnorms
from unetrt.training.samples import TrainingData, load_training_data
from unetrt.training.step import StepOptions, Stepper
from unetrt.training.teacher import Teacher
from unetrt.training.unet import UNet
from unetrt.training.validate import validate

CPU = torch.device("cpu")


def main(images: str, masks: str, out: str) -> None:
    torch.set_num_threads(1)
    options = TrainOptions(
        images=Path(images), masks=Path(masks), channels=1, classes=4, width=4, scale=1.0,
        validation=25,
    )  # fmt: skip
    data = load_training_data(options, None)
    with joined_ranks(cuda=False) as ranks:
        rules: tuple[Dice, ...] = ("all", "foreground")
        results: dict[str, dict[str, Any]] = {d: three_steps(data, d, ranks) for d in rules}
        teacher = Teacher(Path(images).parent / "teacher.pth", options, CPU)
        teacher._masknet.double()
        results["taught"] = three_steps(data, "foreground", ranks, teacher)
        results["any"] = {"yes": ranks.any(ranks.rank == ranks.world - 1, CPU)}
        if ranks.is_main:
            torch.save(results, out)
    assert not gloo_threads(), gloo_threads()


def gloo_threads() -> list[str]:
    """Threads of a process group that outlived it; at the interpreter's end they may abort it."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def three_steps(
    data: TrainingData, dice: Dice, ranks: Ranks, teacher: Teacher | None = None
) -> dict[str, Any]:
    """In float64: what differs then is no rounding."""
    torch.manual_seed(0)
    net = UNet(1, 4, 4).train().double()
    sync_batchnorms(net, ranks, CPU)
    net.double()
    masknet = MaskNet(ranks.wrapped(net), data.spec)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    loss = LossOptions(dice=dice, weights=(1, 2, 3, 4))
    options = StepOptions(loss=loss, teacher=teacher, teacher_weight=0.7)
    stepper = Stepper(net, masknet, optimizer, options, ranks)
    batches = Batches(data.train, BatchOptions(size=4, augment=True), ranks)
    losses = [stepper.step(batch)[0] for batch in batches.epoch(0)]
    gradients = {f"gradient {name}": p.grad for name, p in net.named_parameters()}
    counts = validate(MaskNet(net, data.spec), data.validation, ranks).counts
    state = net.state_dict() | gradients
    return {"losses": losses, "counts": torch.from_numpy(counts), "state": state}


if __name__ == "__main__":
    main(*sys.argv[1:])
