"""What the system is told of threads that work beside an engine."""

from __future__ import annotations

import os

import pytest

from unetrt.runtime.threads import worker_pool

pytestmark = pytest.mark.skipif(
    not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="classes of threads are Linux's, and this process was given one",
)


def class_of_worker() -> int:
    with worker_pool(1, "load") as pool:
        return pool.submit(os.sched_getscheduler, 0).result()


def test_workers_are_of_the_batch_class_and_nobody_else() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert class_of_worker() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_class_that_the_process_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = os.sched_getscheduler
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_IDLE)
    with worker_pool(1, "load") as pool:
        assert pool.submit(asked, 0).result() == os.SCHED_OTHER, "as this process has it"


def test_where_it_is_not_allowed_they_work_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    assert class_of_worker() == os.SCHED_OTHER
