"""The stage table: no time is lost, and the bottleneck is what it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bench.conftest import row_result
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench.quiet import warnings
from unetrt.bench.result import Bench, Row
from unetrt.bench.stages import (
    ASK,
    COPY,
    HAND_OVER,
    JOURNAL,
    REST,
    STEPS,
    SUBMIT,
    Pass,
    StageClock,
    StageTable,
    stage_table,
    stage_table_from_dict,
)
from unetrt.bench.timed_pass import timed_pass
from unetrt.contract.cores import usable_cores
from unetrt.contract.errors import UserError
from unetrt.contract.masks import read_mask
from unetrt.contract.types import U8
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime import work
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.pipeline import PipelineOptions, Result
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, predict_masks
from unetrt.runtime.work import Outcome, Work

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        yield engine


def tasks_in(folder: Path, count: int = 6) -> list[Task]:
    tasks = []
    for index in range(count):
        source = folder / f"{index}.jpg"
        Image.fromarray(steel(index, 40, 56)[..., 0]).save(source)
        tasks.append(Task(source, folder / f"{index}_mask.png"))
    return tasks


def test_every_stage_is_timed_and_what_is_in_no_step_is_told(
    engine: TorchEngine, tmp_path: Path
) -> None:
    journal = JournalOptions(output_dir=tmp_path, model="0" * 64)
    options = PredictOptions(pipeline=PipelineOptions(load_threads=1), journal=journal)
    table = stage_table(timed_pass(engine, tasks_in(tmp_path), options), 100.0, 0.99)
    assert [s.name for s in table.stages if s.where == "main thread"] == list(STEPS)
    assert table.images == 6
    by_name = {stage.name: stage for stage in table.stages}
    assert by_name["compute"].seconds == pytest.approx(6 / 100)
    assert table.main_seconds < table.wall, "what is left over is not counted as a step"
    assert by_name[REST].seconds == pytest.approx(table.wall * table.in_no_step)
    for name in (ASK, COPY, SUBMIT, HAND_OVER, JOURNAL):
        assert by_name[name].seconds > 0, name
    for name in ("decode", "encode", "write"):
        assert 0 < by_name[name].seconds < table.wall
        assert by_name[name].cpu is not None
    assert by_name["decode"].threads == 1
    assert stage_table_from_dict(json.loads(json.dumps(asdict(table)))) == table


def test_the_timed_pass_writes_the_masks_that_predict_writes(
    engine: TorchEngine, tmp_path: Path
) -> None:
    tasks = tasks_in(tmp_path)
    timed_pass(engine, tasks, PredictOptions())
    timed = [read_mask(task.output) for task in tasks if task.output]
    predict_masks(engine, tasks, PredictOptions())
    for mask, task in zip(timed, tasks, strict=True):
        assert task.output is not None
        np.testing.assert_array_equal(mask, read_mask(task.output))


def slowed(name: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(work, name)

    def slow(*args: object, **named: object) -> object:
        time.sleep(seconds)
        return real(*args, **named)

    monkeypatch.setattr(work, name, slow)


@pytest.mark.parametrize(
    ("function", "bottleneck", "stage"),
    [("read_reduced", "load threads", "decode"), ("encode_mask", "write threads", "encode")],
)
def test_a_slow_stage_is_the_bottleneck_and_bounds_the_rate(
    function: str,
    bottleneck: str,
    stage: str,
    engine: TorchEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slowed(function, 0.05, monkeypatch)
    pipeline = PipelineOptions(load_threads=1, write_threads=1)
    options = PredictOptions(pipeline=pipeline)
    table = stage_table(timed_pass(engine, tasks_in(tmp_path), options), 1e6)
    assert table.bottleneck == bottleneck
    assert table.bound is not None
    assert 5 < table.bound <= 20
    workers = (s for s in table.stages if s.where.endswith("threads"))
    busiest = max(workers, key=lambda s: s.busy)
    assert busiest.name == stage
    assert busiest.busy > 0.5


class SlowEngine(TorchEngine):
    def infer(self, images: U8, masks: U8) -> None:
        time.sleep(0.05)
        super().infer(images, masks)


def test_padding_is_counted_as_what_the_engine_ran(engine: TorchEngine, tmp_path: Path) -> None:
    options = PredictOptions(pipeline=PipelineOptions(batch=4))
    table = stage_table(timed_pass(engine, tasks_in(tmp_path), options), 100.0)
    compute = next(stage for stage in table.stages if stage.name == "compute")
    assert compute.seconds == pytest.approx(8 / 100)


def warned(table: StageTable) -> list[str]:
    row = Row(name="x", result=replace(row_result("x", [9.0, 9.0]), stages=table))
    found = warnings(Bench(rows=(row,), images=6, machine={}, versions={}))
    return [text for text in found if "in no step" in text]


def test_time_that_no_step_holds_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: main-thread work outside of every span."""
    outcome = Work.outcome

    def slow(job: Work, result: Result[Task]) -> Outcome:
        time.sleep(0.05)
        return outcome(job, result)

    with SlowEngine(balanced_checkpoint(), "cpu") as engine:
        options = PredictOptions(pipeline=PipelineOptions(batch=1, slots=1))
        held = stage_table(timed_pass(engine, tasks_in(tmp_path), options), 20.0)
        monkeypatch.setattr(Work, "outcome", slow)
        lost = stage_table(timed_pass(engine, tasks_in(tmp_path), options), 20.0)
    assert held.in_no_step < 0.25, "the engine's waits are a step"
    assert lost.in_no_step > held.in_no_step + 0.15
    (told,) = warned(lost)
    assert f"{lost.in_no_step:.0%} of the pass" in told


@pytest.mark.parametrize(("spent", "share"), [(0.97, 0.03), (0.5, 0.5), (1.5, -0.5)])
def test_steps_that_overlap_are_no_sum_either(spent: float, share: float) -> None:
    clock = StageClock()
    clock.seconds["wait for a batch"] = spent
    clock.first = 0.0
    clock.ran = 1
    done = Pass(clock=clock, start=0.0, wall=1.0, images=1, load_threads=1, write_threads=1)
    table = stage_table(done, 10.0)
    assert table.in_no_step == pytest.approx(share)
    assert bool(warned(table)) == (abs(share) > 0.05)


def test_a_wait_for_threads_that_did_nothing_is_bound_by_the_engine() -> None:
    """As for pictures that another process has decoded: infinity would be no JSON."""
    clock = StageClock()
    clock.seconds["wait for an image"], clock.first, clock.ran = 0.9, 0.0, 1
    done = Pass(clock=clock, start=0.0, wall=1.0, images=1, load_threads=1, write_threads=1)
    table = stage_table(done, 10.0)
    assert (table.bottleneck, table.bound) == ("load threads", 10.0)
    json.dumps(asdict(table), allow_nan=False)


def test_an_engine_whose_rate_is_not_known_allows_no_rate() -> None:
    clock = StageClock()
    clock.seconds["wait for a batch"], clock.first, clock.ran = 0.9, 0.0, 1
    done = Pass(
        clock=clock, start=0.0, wall=1.0, images=1, load_threads=1, write_threads=1, shared_cores=2
    )
    table = stage_table(done, None)
    assert (table.bottleneck, table.bound, table.shared_bound) == ("engine", None, None)
    assert "compute" not in [stage.name for stage in table.stages]


def test_a_pass_that_skips_images_is_no_measurement(engine: TorchEngine, tmp_path: Path) -> None:
    journal = JournalOptions(output_dir=tmp_path, model="0" * 64)
    tasks, options = tasks_in(tmp_path), PredictOptions(journal=journal)
    assert timed_pass(engine, tasks, options).images == 6
    with pytest.raises(UserError, match="images were skipped"):
        timed_pass(engine, tasks, options)


def test_a_slow_engine_is_the_bottleneck(tmp_path: Path) -> None:
    with SlowEngine(balanced_checkpoint(), "cpu") as engine:
        table = stage_table(timed_pass(engine, tasks_in(tmp_path), PredictOptions()), 20.0)
    assert table.bottleneck == "engine"
    assert table.bound == 20
    compute = next(stage for stage in table.stages if stage.name == "compute")
    assert 0 < compute.busy < 1.1


class BusyEngine(TorchEngine):
    """Computes for a while in the thread that runs a slot's batch."""

    seconds = 0.0

    def infer(self, images: U8, masks: U8) -> None:
        start = time.thread_time()
        while time.thread_time() - start < self.seconds:
            pass
        super().infer(images, masks)


def test_the_engine_has_what_no_other_thread_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told from the threads that load and write, which compute as much here."""
    real = work.encode_mask

    def busy(*args: Any) -> bytes:
        start = time.thread_time()
        while time.thread_time() - start < 0.02:
            pass
        return real(*args)

    monkeypatch.setattr(work, "encode_mask", busy)
    with BusyEngine(balanced_checkpoint(), "cpu") as engine:
        tables = []
        for engine.seconds in (0.0, 0.05):
            done = timed_pass(engine, tasks_in(tmp_path), PredictOptions())
            assert done.beside_main > 6 * (0.02 + engine.seconds)
            tables.append(stage_table(done, 100.0))
    idle, loaded = (t.stages[-1].cpu for t in tables)
    assert idle is not None
    assert loaded is not None
    assert loaded - idle == pytest.approx(6 * 0.05, rel=0.3)
    assert idle < 6 * 0.02
    assert tables[1].cores == pytest.approx(loaded / tables[1].wall / usable_cores())


def test_an_engine_on_a_device_has_no_share_of_the_cores(
    engine: TorchEngine, tmp_path: Path
) -> None:
    done = replace(timed_pass(engine, tasks_in(tmp_path), PredictOptions()), shared_cores=None)
    table = stage_table(done, 100.0)
    assert (table.cores, table.stages[-1].cpu) == (None, None)
