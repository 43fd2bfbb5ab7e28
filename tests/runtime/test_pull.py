"""What of a Ray job needs no Ray: rows that do not come, and errors that travel as rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_journal import flat
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.engine.base import Engine
from unetrt.runtime import pull
from unetrt.runtime.budget import SHARE
from unetrt.runtime.cluster_work import ROW, InferRows, load_row, packed, unpacked, write_row
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions
from unetrt.runtime.pull import AHEAD, WAIT, Puller
from unetrt.runtime.work import Outcome
from unetrt.runtime.worker import EngineOptions


@dataclass
class Rows:
    """Stands for a data set of Ray's: `count` rows, then nothing until `held` is set."""

    count: int
    held: threading.Event = field(default_factory=threading.Event)
    given: list[int] = field(default_factory=list)
    error: Exception | None = None
    closed: bool = False

    def iter_rows(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                self.given.append(number)
                yield number
            self.held.wait(60)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def test_rows_come_in_order_up_to_the_end() -> None:
    rows = Rows(100)
    rows.held.set()
    puller = Puller(rows)
    found = list(iter(puller.next, None))
    assert [row for row in found if row is not WAIT] == list(range(100))
    assert puller.end()


def test_who_waits_for_a_row_is_told_so_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "GRACE", 0.1)
    rows = Rows(0)
    puller = Puller(rows)
    assert puller.next() is WAIT, "not what comes when the rows end, a minute later"
    assert not puller.end(), "it cannot be told to give up"
    rows.held.set()
    assert puller.end()


def test_rows_that_nobody_takes_are_few_and_the_end_closes_the_iterator() -> None:
    rows = Rows(1000)
    puller = Puller(rows)
    assert puller.next() == 0
    assert puller.end()
    assert len(rows.given) <= AHEAD + 2
    assert rows.closed, "which ends what still runs"


def test_an_error_is_raised_where_the_rows_are_taken() -> None:
    rows = Rows(1, error=ValueError("of Ray"))
    rows.held.set()
    puller = Puller(rows)
    assert puller.next() == 0
    with pytest.raises(ValueError, match="of Ray"):
        list(iter(puller.next, None))


class FailingEngine(ThresholdEngine):
    def infer(self, images: U8, masks: U8) -> None:
        raise UserError("the device has failed", seen=700)


@dataclass(frozen=True)
class Model:
    """Stands for ShippedModel."""

    engine: Engine | UserError

    def open(self, *_: Any) -> Engine:
        if isinstance(self.engine, UserError):
            raise self.engine
        return self.engine


@pytest.mark.parametrize(
    "engine", [FailingEngine(), UserError("the device has failed", seen=Path("700"))]
)
def test_an_error_of_the_engine_travels_as_a_row(
    engine: Engine | UserError, tmp_path: Path
) -> None:
    """Raised, it would come as an error of Ray's, or kill the actor again and again."""
    options = PredictOptions()
    task = Task(write_picture(tmp_path / "a.png", flat(1)), tmp_path / "a_OUT.png")
    lost = Outcome(Task(tmp_path / "b.png", None), "no image")
    spec = ThresholdEngine().spec
    rows = [load_row(packed(task), spec, options), packed(lost)]
    arguments = (EngineOptions(model=tmp_path), options, "cpu", 1)
    actor = InferRows(lambda: Model(engine), *arguments)  # type: ignore[arg-type, return-value]
    batch = {ROW: np.array([row[ROW] for row in rows], dtype=object)}
    done = [write_row({ROW: data}, spec, options) for data in actor(batch)[ROW]]
    outcome, error = (unpacked(row[ROW]) for row in done)
    assert outcome == lost
    assert isinstance(error, UserError)
    assert (error.message, error.seen) == ("the device has failed", "700")


def test_an_actor_has_its_part_of_its_own_machine_s_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of that of the machine which runs the job: images are cut by it."""
    monkeypatch.setattr("unetrt.engine.probe.memory_bytes", lambda: 8000)
    monkeypatch.setattr("unetrt.engine.probe.usable_cores", lambda: 4)
    options = PredictOptions(pipeline=PipelineOptions(memory=1 << 40))
    arguments = (EngineOptions(model=tmp_path), options, "cpu", 1)
    actor = InferRows(lambda: Model(ThresholdEngine()), *arguments)  # type: ignore[arg-type, return-value]
    assert actor._options.memory == 8000 // 4 // SHARE


def test_what_has_come_is_kept_at_a_stop_and_no_more_is_taken() -> None:
    """Rows without an end, as of a job that is far from its own."""

    class Endless:
        taken = 0

        def iter_rows(self) -> Iterator[int]:
            while True:
                self.taken += 1
                yield self.taken

    rows = Endless()
    puller = Puller(rows)
    while rows.taken <= AHEAD:  # one more waits for its place
        time.sleep(0.01)
    assert puller.next() == 1
    held = list(puller.held())
    assert held[: AHEAD - 1] == list(range(2, AHEAD + 1))
    assert len(held) <= AHEAD + 1
    assert puller.end()
