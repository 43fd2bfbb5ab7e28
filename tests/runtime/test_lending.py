"""Masks in memory that a slot has given away: nobody writes there before they are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import balanced_checkpoint
from tests.runtime.conftest import (
    ThresholdEngine,
    end_loans_at_once,
    torch_engine,
    write_picture,
)
from unetrt.contract.errors import DeviceMemoryError, ImageError
from unetrt.contract.masks import read_mask
from unetrt.contract.types import U8, Size
from unetrt.engine.base import HostBuffer, Memory, Slot
from unetrt.engine.host import HostSlot
from unetrt.runtime import lending
from unetrt.runtime.lending import MOST, Loan, Outputs
from unetrt.runtime.pipeline import Pipeline, PipelineOptions, run_pipeline
from unetrt.runtime.plan import Task
from unetrt.runtime.work import PredictOptions, write_masks

SIDE = 400
"""Two masks of such a side are more than LEAST."""


class GivingSlot(HostSlot):
    given = 0

    def exchange(self, memory: Memory) -> Memory:
        GivingSlot.given += 1
        return super().exchange(memory)


class GivingEngine(ThresholdEngine):
    """made: memory beside that of its slots, all of it; freed: how often any was."""

    def __init__(self, batch: int = 2) -> None:
        super().__init__(batch=batch)
        self.made: list[Memory] = []
        self.freed = 0
        GivingSlot.given = 0

    def slot(self) -> Slot:
        return GivingSlot(self)

    def infer(self, images: U8, masks: U8) -> None:
        """The image's first value, so that masks are told from each other."""
        for image, mask in zip(images, masks, strict=True):
            mask[:] = image[0, 0, 0]

    def memory(self) -> Memory:
        engine = self

        class Told(HostBuffer):
            def free(self) -> None:
                engine.freed += 1
                super().free()

        self.made.append(Told())
        return self.made[-1]


def load(index: int) -> tuple[U8, Size]:
    return np.full((8, 8, 1), index % 251, np.uint8), (SIDE, SIDE)


def run(
    engine: GivingEngine,
    count: int,
    consume: Callable[[int, U8], None],
    options: PipelineOptions | None = None,
    lend: bool = True,
) -> dict[int, ImageError | None]:
    options = options or PipelineOptions(write_threads=3)
    results = run_pipeline(engine, range(count), load, consume, options, lend=lend)
    return {result.task: result.error for result in results}


class Checking:
    """Looks at every mask twice, the second time after a while: wrong ones are counted."""

    def __init__(self, pause: float = 0.003) -> None:
        self.pause, self.seen, self.wrong = pause, 0, 0
        self._lock = threading.Lock()

    def __call__(self, task: int, mask: U8) -> None:
        right = (mask == task % 251).all()
        time.sleep(self.pause * (1 + task % 3))
        right = right and (mask == task % 251).all()
        with self._lock:
            self.seen += 1
            self.wrong += not right


def test_masks_are_used_where_the_slot_has_written_them() -> None:
    checking = Checking()
    with GivingEngine() as engine:
        errors = run(engine, 300, checking)
        assert not any(errors.values())
        assert (checking.seen, checking.wrong) == (300, 0)
        assert GivingSlot.given > 50
        assert len(engine.made) <= MOST + 10, "of masks and of pages"
        assert engine.freed >= len(engine.made) - engine.slots, "the slots have the rest"


def test_loans_that_end_too_early_give_wrong_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    end_loans_at_once(monkeypatch)
    checking = Checking()
    with GivingEngine() as engine:
        run(engine, 300, checking)
    assert checking.wrong > 20


def test_masks_are_copied_where_all_memory_is_lent() -> None:
    """Writers that are slow hold more batches than there is memory for."""
    checking = Checking(pause=0.02)
    with GivingEngine() as engine:
        options = PipelineOptions(write_threads=1, memory=3 * 2 * SIDE * SIDE)
        assert not any(run(engine, 60, checking, options).values())
    assert (checking.seen, checking.wrong) == (60, 0)


def test_masks_that_are_kept_are_not_lent() -> None:
    masks: dict[int, U8] = {}
    with GivingEngine() as engine:
        assert not any(run(engine, 100, masks.__setitem__, lend=False).values())
    assert GivingSlot.given == 0
    assert all((mask == index).all() for index, mask in masks.items())


def test_small_masks_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LEAST", 2 * SIDE * SIDE + 1)
    checking = Checking(pause=0)
    with GivingEngine() as engine:
        assert not any(run(engine, 100, checking).values())
    assert GivingSlot.given == 0
    assert checking.wrong == 0


def test_slots_that_exchange_nothing_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(slot: Slot, memory: Memory) -> None:
        asked.append((slot, memory))

    monkeypatch.setattr(GivingSlot, "exchange", refuse)
    checking = Checking(pause=0)
    with GivingEngine() as engine:
        assert not any(run(engine, 100, checking).values())
    assert len(asked) == 1
    assert checking.wrong == 0


def test_masks_are_copied_where_there_is_no_memory_of_that_kind() -> None:
    class Full(GivingEngine):
        def memory(self) -> Memory:
            class Nothing(HostBuffer):
                def view(self, shape: tuple[int, ...]) -> U8:
                    raise DeviceMemoryError("no memory to pin", seen=shape)

            return Nothing()

    checking = Checking(pause=0)
    with Full() as engine:
        assert not any(run(engine, 100, checking).values())
    assert checking.wrong == 0
    assert GivingSlot.given == 0


def test_masks_that_cannot_be_used_give_their_memory_back() -> None:
    def consume(task: int, mask: U8) -> None:
        assert (mask == task % 251).all()
        if task % 3 == 0:
            raise ImageError(f"{task} cannot be written")

    with (
        GivingEngine() as engine,
        Pipeline(engine, load, consume, PipelineOptions(), bool, lend=True) as pipeline,
    ):
        for _ in range(2):
            errors = {r.task: r.error for r in pipeline.run(iter(range(90)))}
            assert {index for index, error in errors.items() if error} == {*range(0, 90, 3)}
            assert len(pipeline.outputs._idle) == pipeline.outputs._made <= MOST
        pipeline.outputs.trim()
        assert pipeline.outputs._made == 0
        assert not any(r.error for r in pipeline.run(iter([1, 2, 4, 5])))


def test_a_consumer_that_fails_ends_the_run_and_frees_all() -> None:
    def consume(task: int, mask: U8) -> None:
        if task == 40:
            raise RuntimeError(task, mask.shape)

    with GivingEngine() as engine:
        with pytest.raises(RuntimeError):
            run(engine, 100, consume)
        assert engine.freed >= len(engine.made) - engine.slots


def test_a_loan_ends_with_its_last_holder() -> None:
    ended: list[int] = []
    loan = Loan(lambda: ended.append(1))
    for _ in range(3):
        loan.hold()
    for _ in range(3):
        loan.let_go()
        assert not ended
    loan.let_go()
    assert ended == [1]


def test_memory_is_bounded_by_bytes_and_by_number() -> None:
    masks = np.zeros((2, SIDE, SIDE), np.uint8)
    with GivingEngine() as engine:
        for most_bytes, most in ((0, 0), (3 * masks.nbytes, 3), (1 << 30, MOST)):
            outputs, slot = Outputs(engine, most_bytes, wanted=True), engine.slot()
            loans = []
            for _ in range(10):
                with outputs.lend(slot, masks, 2) as loan:
                    if loan is not None:
                        loan.hold()
                        loans.append(loan)
            assert len(loans) == most
            for loan in loans:
                loan.let_go()
            outputs.close()
            outputs.close()
            slot.close()


def test_memory_that_would_grow_past_the_bound_is_freed() -> None:
    small, large = (np.zeros((1, side, side), np.uint8) for side in (600, 3000))
    with GivingEngine() as engine:
        outputs, slot = Outputs(engine, 3 * large.nbytes, wanted=True), engine.slot()
        slot.exchange(engine.memory())
        for masks, most in ((small, MOST), (large, 3)):
            with ExitStack() as stack:
                loans = [stack.enter_context(outputs.lend(slot, masks, 1)) for _ in range(MOST)]
            assert sum(loan is not None for loan in loans) == most
        assert engine.freed == MOST - 3
        with outputs.lend(slot, small[:, :100, :100], 100) as loan:
            assert loan is not None, "as large as the batch, not as what counts of it"
        outputs.trim()
        assert engine.freed == MOST
        assert outputs._made == 0


def test_memory_of_a_writer_that_never_ran_is_freed() -> None:
    masks = np.zeros((2, SIDE, SIDE), np.uint8)
    with GivingEngine() as engine:
        outputs, slot = Outputs(engine, 1 << 30, wanted=True), engine.slot()
        slot.exchange(engine.memory())
        with outputs.lend(slot, masks, 2) as loan:
            assert loan is not None
            loan.hold()
        assert engine.freed == 0
        outputs.close()
        assert engine.freed == 1


def test_files_are_the_same_with_masks_that_were_lent(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = [
        write_picture(tmp_path / f"{i}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        for i in range(6)
    ]
    with torch_engine(balanced_checkpoint(), batch=2) as engine:
        kept: dict[Path, U8] = {}
        for name in ("lent", "looked at"):
            look = None if name == "lent" else lambda task, mask: kept.update({task.source: mask})
            tasks = [Task(path, tmp_path / f"{name}_{path.name}") for path in sources]
            options = PredictOptions(format="index")
            assert not any(o.reason for o in write_masks(engine, tasks, options, look))
    for path in sources:
        lent, looked = (read_mask(tmp_path / f"{n}_{path.name}") for n in ("lent", "looked at"))
        np.testing.assert_array_equal(lent, looked)
        assert len(np.unique(kept[path])) > 1
