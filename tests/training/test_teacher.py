from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS
from unetrt.training.batches import Batch
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetrt.training.losses import LossOptions, segmentation_loss
from unetrt.training.masknet import MaskNet
from unetrt.training.options import TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.step import StepOptions, Stepper
from unetrt.training.teacher import Teacher, imitation_loss
from unetrt.training.train import train
from unetrt.training.unet import UNet

CPU = torch.device("cpu")
Teach = Callable[..., Path]


@pytest.fixture
def teach(tmp_path: Path) -> Teach:
    """Write a checkpoint of width 6 with drawn weights, for `quick_options`."""

    def write(name: str = "teacher.pth", seed: int = 3, **other: object) -> Path:
        spec = ModelSpec(**{"channels": 1, "classes": 4, "width": 6, "scale": 1.0, **other})  # type: ignore[arg-type]
        torch.manual_seed(seed)
        net = UNet(spec.channels, spec.classes, spec.width)
        torch.nn.init.normal_(net.outc.conv.weight)  # answers of some certainty
        write_checkpoint(tmp_path / name, Checkpoint(spec, net.state_dict()))
        return tmp_path / name

    return write


def loss(logits: torch.Tensor, taught: torch.Tensor, truth: torch.Tensor) -> float:
    return imitation_loss(logits, taught, truth, Ranks()).item()


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_the_same_answers_cost_nothing(classes: int) -> None:
    logits, truth = 4 * torch.randn(2, classes, 6, 7), torch.zeros(2, 6, 7, dtype=torch.long)
    assert loss(logits, logits, truth) == pytest.approx(0, abs=1e-5)
    assert loss(logits, -logits, truth) > 0.5


def test_by_hand() -> None:
    """The divergence of the pixels, and Dice of what both say of each class that is taught."""
    logits, taught = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    taught[:, 2] = -9  # the third class is not taught
    p, q = taught.softmax(1), logits.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    dice = 2 * torch.minimum(p[:, 1], q[:, 1]).sum() / (p[:, 1].sum() + q[:, 1].sum())
    truth = torch.zeros(2, 4, 5, dtype=torch.long)
    assert loss(logits, taught, truth) == pytest.approx((divergence + 1 - dice).item(), rel=1e-4)


def test_one_logit_is_two_classes() -> None:
    logits, taught = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    both = [torch.cat([torch.zeros_like(one), one], 1) for one in (logits, taught)]
    truth = torch.zeros(2, 6, 6, dtype=torch.long)
    assert loss(logits, taught, truth) == pytest.approx(loss(*both, truth), rel=1e-5)


@pytest.mark.parametrize("larger", [1, 2])
def test_ignored_pixels_are_not_taught(larger: int) -> None:
    """Where the truth is larger, too: by the nearest of its pixels."""
    logits, taught = torch.randn(2, 4, 6, 8, requires_grad=True), torch.randn(2, 4, 6, 8)
    truth = torch.zeros(2, 6 * larger, 8 * larger, dtype=torch.long)
    truth[:, :, 4 * larger :] = NO_CLASS
    found = imitation_loss(logits, taught, truth, Ranks())
    found.backward()  # type: ignore[no-untyped-call]
    left = torch.zeros(2, 6, 4, dtype=torch.long)
    assert found.item() == pytest.approx(loss(logits[..., :4], taught[..., :4], left), rel=1e-5)
    assert logits.grad is not None
    assert (logits.grad[..., 4:] == 0).all()
    assert (logits.grad[..., :4] != 0).any()


def test_a_batch_without_counted_pixels_is_finite() -> None:
    truth = torch.full((1, 4, 4), NO_CLASS)
    logits = torch.randn(1, 4, 4, 4, requires_grad=True)
    found = imitation_loss(logits, torch.randn(1, 4, 4, 4), truth, Ranks())
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_what_the_teacher_does_not_answer_is_not_taught() -> None:
    """In float16 a teacher may overflow."""
    logits, taught = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4)
    truth = torch.zeros(1, 4, 4, dtype=torch.long)
    taught[0, 1, :, 2:] = torch.tensor([torch.inf, torch.nan])
    found = imitation_loss(logits, taught, truth, Ranks())
    found.backward()  # type: ignore[no-untyped-call]
    left = loss(logits[..., :2], taught[..., :2], truth[..., :2])
    assert found.item() == pytest.approx(left, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[..., 2:] == 0).all()


def test_answers_without_a_doubt_are_finite() -> None:
    """Logits of half-precision floats reach 65504."""
    logits = torch.tensor([-6e4, 6e4]).repeat(1, 4).reshape(1, 2, 2, 2).requires_grad_()
    truth = torch.zeros(1, 2, 2, dtype=torch.long)
    found = imitation_loss(logits, -logits.detach(), truth, Ranks())
    found.backward()  # type: ignore[no-untyped-call]
    assert found.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_step_weighs_masks_and_teacher(teach: Teach, quick_options: TrainOptions) -> None:
    teacher = Teacher(teach(), quick_options, CPU)
    images = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    truth = torch.randint(0, 4, (2, 32, 32), dtype=torch.uint8)
    net = UNet(1, 4, 4).train()
    masknet = MaskNet(net, teacher.spec)
    options = StepOptions(loss=LossOptions(), teacher=teacher, teacher_weight=0.7)
    logits = masknet.logits(images)
    expected = 0.3 * segmentation_loss(logits, truth.long(), LossOptions()) + 0.7 * imitation_loss(
        logits, teacher.logits(images), truth, Ranks()
    )
    before = {name: value.clone() for name, value in teacher._masknet.state_dict().items()}
    stepper = Stepper(net, masknet, torch.optim.SGD(net.parameters(), 0.1), options, Ranks())
    found, _ = stepper.step(Batch(images, truth, []))
    assert found == pytest.approx(expected.item(), rel=1e-5)
    after = teacher._masknet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_network_comes_to_answer_as_its_teacher(
    teach: Teach, quick_options: TrainOptions
) -> None:
    """With the whole weight on it: the masks have no part in the loss."""
    recipe = replace(
        quick_options.recipe, epochs=12, teacher_weight=1.0, ema=0.0, learning_rate=1e-2
    )
    options = replace(quick_options, recipe=recipe, teacher=teach())
    train(options)
    assert options.out is not None
    rows = (options.out / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[2]) for row in rows]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"classes": 3}, "classes 3"),
        ({"channels": 3}, "channels 3"),
        ({"scale": 0.5}, "scale 0.5"),
        ({"mask_values": (0, 1, 2, 9)}, "9"),
        ({"bit_depth": 12}, "bit_depth 12"),
    ],
)
def test_one_that_learnt_something_else_is_refused(
    teach: Teach, quick_options: TrainOptions, other: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match="cannot teach") as caught:
        train(replace(quick_options, teacher=teach(**other)))
    assert told in str(caught.value.seen)
    assert not (quick_options.out or Path()).exists()


def test_a_bare_checkpoint_teaches(
    teach: Teach, quick_options: TrainOptions, tmp_path: Path
) -> None:
    """One of Pytorch-UNet's says nothing of scale and mask values."""
    bare = tmp_path / "MODEL.pth"
    torch.save(read_checkpoint(teach()).state, bare)
    assert train(replace(quick_options, teacher=bare)).is_file()


def test_a_resumed_run_has_the_same_teacher(
    teach: Teach, quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it lies now; and it ends as a run without a stop does."""
    run, path = quick_options.out, teach()
    options = replace(quick_options, teacher=path)
    train(replace(options, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr("unetrt.training.step.imitation_loss", _interrupted_at(2))
        with pytest.raises(KeyboardInterrupt):
            train(options)
    moved = Path(shutil.move(path, tmp_path / "moved.pth"))
    with pytest.raises(UserError, match="teacher of the run is not where it was") as caught:
        train(TrainOptions(resume=run))
    assert f"--resume {run} --teacher" in str(caught.value.hint)
    with pytest.raises(UserError, match="teacher of the run") as caught:
        train(TrainOptions(resume=run, teacher=teach("other.pth", seed=4)), {"teacher"})
    assert "another file" in str(caught.value.seen)
    train(TrainOptions(resume=run, teacher=moved), {"teacher"})
    ends = [read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "run")]
    assert all(torch.equal(ends[0].state[name], ends[1].state[name]) for name in ends[0].state)


def _interrupted_at(call: int) -> Callable[..., torch.Tensor]:
    calls: list[int] = []

    def loss(*arguments: Any) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return imitation_loss(*arguments)

    return loss


def test_a_weight_without_a_teacher_is_refused(teach: Teach, quick_options: TrainOptions) -> None:
    recipe = replace(quick_options.recipe, teacher_weight=0.3)
    with pytest.raises(UserError, match="--teacher-weight"):
        replace(quick_options, recipe=recipe)
    assert replace(quick_options, recipe=recipe, teacher=teach()).teacher
    assert TrainOptions(resume=Path("run"), recipe=recipe), "the run may have one"


def test_a_run_without_a_teacher_is_not_resumed_with_one(
    teach: Teach, quick_options: TrainOptions
) -> None:
    train(replace(quick_options, recipe=replace(quick_options.recipe, epochs=1)))
    run = quick_options.out
    with pytest.raises(UserError, match="keeps the options that it began with"):
        train(TrainOptions(resume=run, teacher=teach()), {"teacher"})
