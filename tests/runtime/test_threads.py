"""What the system, and cv2, are told of threads that work beside an engine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.runtime.pipeline import run_pipeline
from unetrt.runtime.threads import worker_pool

linux = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="classes of threads are Linux's, and this process was given one",
)


def class_of_worker() -> int:
    with worker_pool(1, "load") as pool:
        return pool.submit(os.sched_getscheduler, 0).result()


@linux
def test_workers_are_of_the_batch_class_and_nobody_else() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert class_of_worker() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@linux
def test_a_class_that_the_process_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = os.sched_getscheduler
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_IDLE)
    with worker_pool(1, "load") as pool:
        assert pool.submit(asked, 0).result() == os.SCHED_OTHER, "as this process has it"


@linux
def test_where_it_is_not_allowed_they_work_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    assert class_of_worker() == os.SCHED_OTHER


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield
    cv2.setNumThreads(before)


@pytest.mark.usefixtures("three_threads")
def test_cv2_has_no_threads_of_its_own_while_a_pipeline_runs(
    threshold_engine: type[Engine],
) -> None:
    seen: list[int] = []

    def load(task: int) -> tuple[U8, Size]:
        seen.append(cv2.getNumThreads())
        return np.full((4, 4, 1), task, np.uint8), (4, 4)

    def refuse(task: int, mask: U8) -> None:
        raise RuntimeError(task, mask.shape)

    def consume(task: int, mask: U8) -> None:
        seen.extend([cv2.getNumThreads()] * mask.shape[0] * (task >= 0))

    with threshold_engine() as engine:
        first, second = (run_pipeline(engine, range(40), load, consume) for _ in range(2))
        next(first)
        next(second)
        assert cv2.getNumThreads() == 1
        first.close()
        assert cv2.getNumThreads() == 1, "the second still runs"
        assert len(list(second)) == 39
        assert cv2.getNumThreads() == 3
        with pytest.raises(RuntimeError):
            list(run_pipeline(engine, range(40), load, refuse))
    assert set(seen) == {1}
    assert cv2.getNumThreads() == 3
