"""The sweep on an engine that takes so many images and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.conftest import balanced_checkpoint
from unetrt.bench.sweep import SweepJob, _points_of_size
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.engine.torch_backend import TorchEngine


class EightAtMost(TorchEngine):
    """As a plan with a profile of 1 to 8 images."""

    def infer(self, images: U8, masks: U8) -> None:
        if len(images) > 8:
            raise UserError("no profile for this")
        super().infer(images, masks)


def test_what_was_measured_before_it_stays(pictures: Path) -> None:
    images = [str(path) for path in sorted(pictures.iterdir())[:2]]
    job = SweepJob(model="m", device="cpu", images=images, seconds=0.2, batches=(1, 8, 16))
    with EightAtMost(balanced_checkpoint(), "cpu") as engine:
        refused: dict[str, str] = {}
        points = _points_of_size(engine, (48, 64), job, [1], refused)
        assert [point.batch for point in points] == [1, 8]
        assert refused == {"48×64, batch 16": "no profile for this"}, "why it ends is told"
        refused.clear()
        assert _points_of_size(engine, (48, 64), replace(job, batches=(16,)), [1], refused) == []
        assert refused == {"48×64": "no profile for this"}
