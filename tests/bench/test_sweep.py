"""The sweep on an engine that takes so many images and no more."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import sweep as sweep_module
from unetrt.bench.filled import Batch, paths_by_size
from unetrt.bench.sweep import (
    SweepJob,
    _finish,
    _keep_in_flight,
    _other_sizes,
    _points_of_size,
    _Work,
)
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, Slot
from unetrt.engine.torch_backend import TorchEngine


def work_of(engine: Engine, job: SweepJob) -> _Work:
    return _Work(engine, paths_by_size(job.images), job)


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
        work = work_of(engine, job)
        points = _points_of_size(work, (48, 64), [1])
        assert [point.batch for point in points] == [1, 8]
        assert work.refused == {"48×64, batch 16": "no profile for this"}, "why it ends is told"
        work = work_of(engine, replace(job, batches=(16,)))
        assert _points_of_size(work, (48, 64), [1]) == []
        assert work.refused == {"48×64": "no profile for this"}


class OneSlotOfFour(TorchEngine):
    """Memory for one slot of four images, and for any number of smaller ones."""

    def __init__(self) -> None:
        super().__init__(balanced_checkpoint(), "cpu")
        self.taken = 0

    def slot(self) -> Slot:
        slot = super().slot()
        reserve, close = slot.reserve, slot.close

        def counted(batch: int, size: Size) -> U8:
            self.taken += batch
            if self.taken > 4:
                raise MemoryError("no more")
            return reserve(batch, size)

        def freed() -> None:
            self.taken = 0
            close()

        slot.reserve, slot.close = counted, freed  # type: ignore[method-assign]
        return slot


def test_a_batch_that_runs_in_one_slot_alone_keeps_its_point(pictures: Path) -> None:
    images = [str(path) for path in sorted(pictures.iterdir())[:2]]
    job = SweepJob(model="m", device="cpu", images=images, seconds=0.1, batches=(1, 3, 4, 5))
    with OneSlotOfFour() as engine:
        work = work_of(engine, job)
        points = _points_of_size(work, (48, 64), [1, 2])
    assert [(point.batch, point.slots) for point in points] == [(1, 1), (1, 2), (3, 1), (4, 1)]
    assert work.refused == {
        "48×64, batch 3, 2 slots": "no memory for a batch of 3, 2 slots (no more)",
        "48×64, batch 5": "no memory for a batch of 5, 1 slots (no more)",
    }


def test_sizes_that_do_not_fit_are_told(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SweepJob(model="m", device="cpu", images=[str(pictures / "0.png")], seconds=0.01)

    def full(*_: object) -> U8:
        raise MemoryError

    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        work = work_of(engine, job)
        assert _points_of_size(work, (20_000, 20_000), [1]) == []
        assert "more than 178956970 pixels" in work.refused["20000×20000"]
        monkeypatch.setattr(sweep_module, "resize_image", full)
        assert _points_of_size(work, (64, 64), [1]) == []
        assert "no memory" in work.refused["64×64"]


def test_a_size_is_swept_once() -> None:
    assert _other_sizes((8, 8), [(4, 4), (8, 8), (4, 4), (6, 6)]) == [(4, 4), (6, 6)]
    assert _other_sizes((1, 8), []) == [(1, 4), (2, 16)]


class SlowStart:
    """A slot that takes its time to start a batch, as one that copies in submit."""

    def __init__(self) -> None:
        self.started = 0

    def submit(self, n: int, size: object) -> None:
        self.started += 1
        time.sleep(0.01)

    def masks(self) -> None:
        pass


def test_a_batchs_time_holds_its_start_and_no_capture() -> None:
    job = SweepJob(model="x", device="cpu", images=[], seconds=0.02)
    batch = Batch([steel(0, 16, 16)], (16, 16))
    slot = SlowStart()
    times, _ = _keep_in_flight([slot], batch, job, 1)  # type: ignore[list-item]
    assert min(times) >= 0.01
    slot = SlowStart()
    _finish(slot, batch)  # type: ignore[arg-type]
    assert slot.started == 2, "the second captures the CUDA graph"


@pytest.mark.parametrize(("count", "streams", "batches"), [(3, 2, 4), (4, 3, 6), (2, 3, 2)])
def test_the_last_batches_of_a_point_leave_no_stream_idle(
    count: int, streams: int, batches: int
) -> None:
    """The time is over with the first start: the fewest batches that are whole rounds."""
    job = SweepJob(model="x", device="cpu", images=[], seconds=0.001)
    slots = [SlowStart() for _ in range(count)]
    batch = Batch([steel(0, 16, 16)], (16, 16))
    times, _ = _keep_in_flight(slots, batch, job, streams)  # type: ignore[arg-type]
    assert len(times) == sum(slot.started for slot in slots) == batches
