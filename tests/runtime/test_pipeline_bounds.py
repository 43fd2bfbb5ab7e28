"""What a run holds: so many images and so many bytes of them, whatever their number and size."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, WatchedEngine
from tests.runtime.test_pipeline import ignore, plain, threads_left
from unetrt.contract.cores import usable_cores
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.types import U8
from unetrt.engine.base import Slot
from unetrt.runtime.budget import Budget
from unetrt.runtime.pipeline import Loaded, PipelineOptions, run_pipeline
from unetrt.runtime.pipeline_options import writers_for


class _Counter:
    """Arrays that are alive, now and at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def watch(self, array: U8) -> U8:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(array, self._gone)
        return array

    def _gone(self) -> None:
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize(("batch", "slots", "threads", "waiting"), [(1, 1, 1, 4), (3, 2, 2, 10)])
def test_loaded_images_are_bounded_whatever_their_number(
    batch: int, slots: int, threads: int, waiting: int, threshold_engine: type[ThresholdEngine]
) -> None:
    """Read ahead: two a thread and one for each place in a slot; then those that wait."""
    counter = _Counter()

    def load(index: int) -> Loaded:
        size = (4, 1 + index % 37)  # so many sizes that no batch is ever full
        return counter.watch(np.zeros((*size, 1), np.uint8)), size

    options = PipelineOptions(batch=batch, slots=slots, load_threads=threads, waiting=waiting)
    bound = 2 * threads + batch * slots + waiting + batch
    with threshold_engine() as engine:
        done = 0
        for _ in run_pipeline(engine, range(600), load, ignore, options):
            done += 1
            if done < 30:
                time.sleep(0.002)  # a slow caller
    assert done == 600
    assert counter.most <= bound
    assert batch == 1 or counter.most >= waiting, "images should wait for others of their size"
    gc.collect()
    assert counter.now == 0


def test_a_slow_writer_holds_the_readers_back(threshold_engine: type[ThresholdEngine]) -> None:
    loaded, written = [], []

    def load(index: int) -> Loaded:
        loaded.append(index)
        return plain(index)

    most = 0

    def consume(task: int, mask: U8) -> None:
        nonlocal most
        most = max(most, len(loaded) - len(written))
        time.sleep(0.002)
        written.append(task)

    options = PipelineOptions(batch=2, slots=2, load_threads=2, write_threads=2)
    with threshold_engine() as engine:
        results = list(run_pipeline(engine, range(300), load, consume, options))
    assert len(results) == len(written) == 300
    reading, waiting, flying, writing = 2 * 2 + 2 * 2, 2, 2 * 2, 4 * 2 + 2 + 2
    assert most <= reading + waiting + flying + writing + 2


def test_tasks_are_taken_as_they_are_needed(threshold_engine: type[ThresholdEngine]) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    options = PipelineOptions(batch=2, slots=2, load_threads=2)
    with threshold_engine() as engine:
        results = run_pipeline(engine, endless(), plain, ignore, options)  # type: ignore[arg-type]
        for _ in range(50):
            next(results)
        results.close()
    assert 50 <= taken < 90
    assert threads_left() == []


def test_a_batch_larger_than_what_waits_is_filled_all_the_same(
    threshold_engine: type[ThresholdEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every batch would run half empty."""
    counts: list[int] = []
    with threshold_engine() as engine:
        make = engine.slot

        def slot() -> Slot:
            made = make()
            submit = made.submit
            monkeypatch.setattr(
                made, "submit", lambda n, size: (counts.append(n), submit(n, size))[1]
            )
            return made

        monkeypatch.setattr(engine, "slot", slot)
        options = PipelineOptions(batch=8, waiting=3)
        assert len(list(run_pipeline(engine, range(32), plain, ignore, options))) == 32
    assert counts == [8, 8, 8, 8]


class _Bytes:
    """Bytes of arrays that are alive, now and at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def watch(self, array: U8) -> U8:
        with self._lock:
            self.now += array.nbytes
            self.most = max(self.most, self.now)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    def _gone(self, count: int) -> None:
        with self._lock:
            self.now -= count


@pytest.mark.parametrize("same_size", [True, False])
def test_loaded_images_are_bounded_in_bytes(
    same_size: bool, threshold_engine: type[ThresholdEngine]
) -> None:
    """Past the budget each load thread may add the one image that it was let through for."""
    alive, image = _Bytes(), 100 * 1000

    def load(index: int) -> Loaded:
        size = (100, 1000) if same_size else (100 + index % 37, 1000)
        return alive.watch(np.zeros((*size, 1), np.uint8)), size

    options = PipelineOptions(
        batch=8, slots=4, load_threads=3, waiting=200, memory=10 * image, write_threads=2
    )
    with threshold_engine() as engine:
        results = []
        for result in run_pipeline(engine, range(300), load, ignore, options):
            results.append(result)
            time.sleep(0.001)  # a slow caller
    assert len(results) == 300
    assert alive.most <= (10 + 2 * 3 + 1) * 1.4 * image
    gc.collect()
    assert alive.now == 0


def test_an_image_above_the_budget_runs_alone(threshold_engine: type[ThresholdEngine]) -> None:
    options = PipelineOptions(batch=4, load_threads=3, memory=1)
    with threshold_engine() as engine:
        results = list(run_pipeline(engine, range(40), plain, ignore, options))
    assert sorted(result.task for result in results) == list(range(40))
    assert threads_left() == []


def test_masks_that_wait_to_be_written_are_bounded_in_bytes(
    threshold_engine: type[ThresholdEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, written, most = 0, 0, 0

    def load(index: int) -> Loaded:
        return np.zeros((4, 6, 1), np.uint8), (200, 1000)

    def consume(task: int, mask: U8) -> None:
        nonlocal written
        time.sleep(0.005)
        written += 1

    options = PipelineOptions(batch=8, slots=1, memory=3 * 200 * 1000, write_threads=1)
    with threshold_engine() as engine:
        infer = engine.infer

        def counted(images: U8, masks: U8) -> None:
            nonlocal loaded, most
            loaded += len(images)
            most = max(most, loaded - written)
            infer(images, masks)

        monkeypatch.setattr(engine, "infer", counted)
        assert len(list(run_pipeline(engine, range(64), load, consume, options))) == 64
    assert most <= 3 + 2 * 8 + 1


def test_who_is_waited_for_passes_and_all_pass_at_the_end() -> None:
    gate = Budget(10)
    gate.admit(0)
    gate.hold(10)
    passed: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: (gate.admit(i), passed.append(i)))  # type: ignore[misc]
        for i in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert passed == []
    gate.want(1)
    threads[0].join(5)
    assert passed == [1]
    gate.give_back(1)
    threads[1].join(5)
    threads[2].join(5)
    assert sorted(passed) == [1, 2, 3]
    gate.hold(5)
    late = threading.Thread(target=lambda: gate.admit(9))
    late.start()
    gate.open()
    late.join(5)
    assert not late.is_alive()


def test_threads_are_those_of_the_cores_that_may_be_used() -> None:
    assert [writers_for(cores) for cores in (1, 8, 16, 64)] == [2, 2, 4, 16]
    assert PipelineOptions().write_threads == writers_for(usable_cores())


def test_a_batch_that_fills_the_memory_is_a_wrong_request(
    threshold_engine: type[ThresholdEngine],
) -> None:
    options = PipelineOptions(batch=10**12)
    with threshold_engine() as engine, pytest.raises(UserError, match="images a batch") as caught:
        list(run_pipeline(engine, range(5), plain, ignore, options))
    assert "--batch" in str(caught.value.hint)
    assert threads_left() == []


def test_one_image_that_is_too_large_for_the_batch_ends_no_job_that_runs(
    threshold_engine: type[ThresholdEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(index: int) -> Loaded:
        image, size = plain(index)
        return (np.repeat(image, 9, axis=0), size) if index == 7 else (image, size)

    monkeypatch.setattr("unetrt.runtime.fit.memory_bytes", lambda: 4 * plain(0)[0].nbytes)
    options = PipelineOptions(batch=2, slots=1, load_threads=1, memory=1 << 20)
    with threshold_engine() as engine:
        results = list(run_pipeline(engine, range(12), load, ignore, options))
    assert [r.task for r in results if r.error] == [7]
    assert len(results) == 12


class NarrowEngine(ThresholdEngine):
    """Takes no network input wider than 6, as a plan outside of its profile."""

    def refusal(self, input_size: tuple[int, int], size: tuple[int, int]) -> ImageError | None:
        if input_size[1] <= 6:
            return None
        return ImageError("outside the plan", seen=f"{input_size} {size}", hint="build --size …")


def test_what_an_engine_does_not_take_costs_itself_alone() -> None:
    def load(index: int) -> Loaded:
        image, size = plain(index)
        return (np.zeros((4, 9, 1), np.uint8), (8, 18)) if index % 5 == 3 else (image, size)

    options = PipelineOptions(batch=3, slots=2)
    with NarrowEngine() as engine:
        results = list(run_pipeline(engine, range(30), load, ignore, options))
        small = replace(options, memory=1)  # what is refused holds nothing
        assert len(list(run_pipeline(engine, range(30), load, ignore, small))) == 30
    failed = {result.task: result.reason for result in results if result.error}
    assert sorted(failed) == [3, 8, 13, 18, 23, 28]
    assert failed[3] == "outside the plan ((4, 9) (8, 18)); Hint: build --size …"
    assert len(results) == 30


@pytest.mark.parametrize(("bound", "asked", "most"), [(10**12, None, 5), (-1, None, 2), (-1, 4, 4)])
def test_spare_slots_are_for_quick_batches(
    bound: int,
    asked: int | None,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stop waits for all that is in flight. bound: nanoseconds of a quick batch."""
    monkeypatch.setattr("unetrt.runtime.fit.SLOW", bound)
    with WatchedEngine(slots=2) as engine:
        engine.spare_slots = 3
        results = run_pipeline(engine, range(40), plain, ignore, PipelineOptions(slots=asked))
        assert sum(1 for _ in results) == 40
    assert engine.most == most
