"""What test_short_ranks.py runs in one process, and by torchrun in two: steps short of memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetrt.contract.errors import DeviceMemoryError
from unetrt.contract.spec import ModelSpec
from unetrt.training import step as step_module
from unetrt.training.batches import Batch
from unetrt.training.losses import LossOptions, segmentation_loss
from unetrt.training.masknet import MaskNet
from unetrt.training.ranks import Ranks, joined_ranks, sync_batchnorms
from unetrt.training.step import StepOptions, Stepper
from unetrt.training.unet import UNet

clip = torch.nn.utils.clip_grad_norm_
CPU = torch.device("cpu")
STEPS = 2
PLACES = ("first block", "last gradient", "norm")
"""Where memory ends, beside the loss: before, between and after the operations of a step."""


class Shortage:
    """Raises at a place of one step so many times; not in the rehearsals, which are small."""

    def __init__(self, place: str, step: int, times: int) -> None:
        self._place, self._step, self._left = place, step, times
        self.now, self._real = 0, False

    def at(self, place: str) -> None:
        if self._real and place == self._place and self.now == self._step and self._left:
            self._left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def listen(self, stepper: Stepper, net: UNet) -> None:
        whole = stepper._tried

        def tried(batch: Batch) -> Any:
            self._real = True
            try:
                return whole(batch)
            finally:
                self._real = False

        def loss(*arguments: Any) -> Tensor:
            self.at("loss")
            return segmentation_loss(*arguments)

        def norm(*arguments: Any) -> Tensor:
            self.at("norm")
            return clip(*arguments)

        patch: Any = stepper
        patch._tried = tried
        put(loss, norm)
        net.inc.register_forward_pre_hook(lambda *_: self.at("first block"))
        first: Any = next(net.parameters())
        first.register_hook(lambda _: self.at("last gradient"))


def put(loss: Any, norm: Any) -> None:
    """In place of what a step calls."""
    for place, name, value in (
        (step_module, "segmentation_loss", loss),
        (torch.nn.utils, "clip_grad_norm_", norm),
    ):
        setattr(place, name, value)


def main(out: str) -> None:
    torch.set_num_threads(1)
    with joined_ranks(cuda=False) as ranks:
        results = {"roomy": run(ranks)}
        if ranks.world > 1:
            last = ranks.rank == ranks.world - 1
            for place in PLACES:
                results[place] = run(ranks, place if last else "")
            results["second step"] = run(ranks, "loss" if last else "", step=1)
            results["first process"] = run(ranks, "loss" if ranks.is_main else "")
            results["both"] = run(ranks, PLACES[1 if last else 0])
            results["twice"] = run(ranks, "loss" if ranks.is_main else "", step=1, times=2)
        torch.save(results, f"{out}.{ranks.rank}")


def run(ranks: Ranks, place: str = "", step: int = 0, times: int = 1) -> dict[str, Any]:
    """In float64, as ranks_worker.py: what differs then is no rounding."""
    torch.manual_seed(0)
    net = UNet(1, 3, 8).train().double()
    sync_batchnorms(net, ranks, CPU)
    net.double()
    masknet = MaskNet(ranks.wrapped(net), ModelSpec(channels=1, classes=3))
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    stepper = Stepper(net, masknet, optimizer, StepOptions(loss=LossOptions()), ranks)
    failing = Shortage(place, step, times)
    failing.listen(stepper, net)
    found: dict[str, Any] = {"losses": [], "error": ""}
    try:
        for number in range(STEPS):
            failing.now = number
            found["losses"].append(stepper.step(batch_of(number, ranks))[0])
    except DeviceMemoryError as error:
        found["error"] = str(error)
    put(segmentation_loss, clip)
    return found | {"state": net.state_dict(), "recompute": net.recompute}


def batch_of(number: int, ranks: Ranks) -> Batch:
    """Four images, every process its share."""
    rng = np.random.default_rng(number)
    images = torch.from_numpy(rng.integers(0, 256, (4, 32, 48, 1), np.uint8))
    truth = torch.from_numpy(rng.integers(0, 3, (4, 32, 48)))
    return Batch(images[ranks.rank :: ranks.world], truth[ranks.rank :: ranks.world], [])


if __name__ == "__main__":
    main(*sys.argv[1:])
