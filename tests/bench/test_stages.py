"""The stage table: no time is lost, and the bottleneck is what it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from unetrt.bench.stages import REST, STEPS, stage_table_from_dict
from unetrt.bench.timed_pass import time_stages
from unetrt.contract.masks import read_mask
from unetrt.contract.types import U8
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime import work
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, predict_masks

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


def test_the_main_threads_steps_are_the_wall_time(engine: TorchEngine, tmp_path: Path) -> None:
    options = PredictOptions(pipeline=PipelineOptions(load_threads=1))
    table = time_stages(engine, tasks_in(tmp_path), options, 100.0)
    assert table.main_seconds == pytest.approx(table.wall, rel=0.05)
    assert [s.name for s in table.stages if s.where == "main thread"] == list(STEPS)
    assert table.images == 6
    by_name = {stage.name: stage for stage in table.stages}
    assert by_name["compute"].seconds == pytest.approx(6 / 100)
    assert by_name[REST].seconds < 0.5 * table.wall, "what no step accounts for"
    for name in ("decode", "encode", "write"):
        assert 0 < by_name[name].seconds < table.wall
        assert by_name[name].cpu is not None
    assert by_name["decode"].threads == 1
    assert stage_table_from_dict(json.loads(json.dumps(asdict(table)))) == table


def test_the_timed_pass_writes_the_masks_that_predict_writes(
    engine: TorchEngine, tmp_path: Path
) -> None:
    tasks = tasks_in(tmp_path)
    time_stages(engine, tasks, PredictOptions(), 100.0)
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
    table = time_stages(engine, tasks_in(tmp_path), PredictOptions(pipeline=pipeline), 1e6)
    assert table.bottleneck == bottleneck
    assert 5 < table.bound <= 20
    busiest = max((s for s in table.stages if s.cpu is not None), key=lambda s: s.busy)
    assert busiest.name == stage
    assert busiest.busy > 0.5


class SlowEngine(TorchEngine):
    def infer(self, images: U8, masks: U8) -> None:
        time.sleep(0.05)
        super().infer(images, masks)


def test_padding_is_counted_as_what_the_engine_ran(engine: TorchEngine, tmp_path: Path) -> None:
    options = PredictOptions(pipeline=PipelineOptions(batch=4))
    table = time_stages(engine, tasks_in(tmp_path), options, 100.0)
    compute = next(stage for stage in table.stages if stage.name == "compute")
    assert compute.seconds == pytest.approx(8 / 100)


def test_a_slow_engine_is_the_bottleneck(tmp_path: Path) -> None:
    with SlowEngine(balanced_checkpoint(), "cpu") as engine:
        table = time_stages(engine, tasks_in(tmp_path), PredictOptions(), 20.0)
    assert table.bottleneck == "engine"
    assert table.bound == 20
    compute = next(stage for stage in table.stages if stage.name == "compute")
    assert 0.5 < compute.busy < 1.1
