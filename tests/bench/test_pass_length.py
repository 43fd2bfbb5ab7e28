"""An engine's pass lasts about the seconds of a repeat: over the images in rounds, if it must."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.conftest import row_result
from tests.bench.test_bench import CheckpointFile, job_of
from tests.conftest import balanced_checkpoint
from unetrt.bench import engine_row, file_passes, pass_length, run, timed_pass
from unetrt.bench.engine_clock import EngineClock
from unetrt.bench.job import RowJob, job_fields, result_from_dict
from unetrt.bench.measure import WarmUp, warm_up
from unetrt.bench.options import BenchOptions
from unetrt.bench.pass_length import job_with_rounds
from unetrt.bench.report import context_lines
from unetrt.bench.report_files import csv_text
from unetrt.bench.result import Bench
from unetrt.bench.row import measure_row
from unetrt.bench.rows import entries_from_models
from unetrt.bench.run import Run
from unetrt.contract.errors import UserError
from unetrt.contract.masks import read_mask
from unetrt.engine.base import Engine
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks

pytestmark = pytest.mark.usefixtures("one_thread")


def stand_in(monkeypatch: pytest.MonkeyPatch, an_image: float, start: float = 0.0) -> list[RowJob]:
    """Looks take `start` and `an_image` for each image, by no clock; the jobs of all."""
    looked: list[RowJob] = []

    def seconds_of(look: partial[None]) -> float:
        (job,) = look.args
        look()
        looked.append(job)
        return start + an_image * len(job.images)

    monkeypatch.setattr(pass_length, "seconds_of", seconds_of)
    return looked


def no_look(job: RowJob) -> None:
    raise AssertionError(f"{len(job.images)} images ran")


def nothing(job: RowJob) -> None:
    pass


@pytest.fixture
def job(pictures: Path, tmp_path: Path) -> RowJob:
    return replace(job_of(Path("x"), pictures, tmp_path / "o"), seconds=3.0)


def test_a_short_pass_goes_over_the_images_again(
    job: RowJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = stand_in(monkeypatch, an_image=0.05)
    longer = job_with_rounds(job, 0.0, nothing)
    assert [len(one.images) for one in looked] == [5, 60]
    assert longer.images == job.images * 12
    assert longer.outputs[:5] == job.outputs
    assert len(set(longer.outputs)) == 60
    assert {Path(path).parent for path in longer.outputs} == {Path(job.outputs[0]).parent}
    assert {Path(path).suffix for path in longer.outputs} == {".png"}


def test_the_second_look_corrects_what_start_and_end_cost_the_first(
    job: RowJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = stand_in(monkeypatch, an_image=0.01, start=0.45)
    longer = job_with_rounds(job, 0.0, nothing)
    assert [len(one.images) for one in looked] == [5, 30]
    assert len(longer.images) == 5 * 24, "6 rounds took 0.75 s"


def test_a_pass_that_is_long_keeps_its_images(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_with_rounds(job, 5 / 3.0, no_look) is job, "the engine alone takes as long"
    looked = stand_in(monkeypatch, an_image=0.6)
    assert job_with_rounds(job, 100.0, nothing) is job
    assert looked == [job], "one look was enough"


def test_a_row_in_a_hurry_keeps_its_images(job: RowJob) -> None:
    assert job_with_rounds(hurried := replace(job, until=time.time() + 30), 100, no_look) is hurried


def test_rounds_have_a_bound(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, an_image=1e-9)
    monkeypatch.setattr(pass_length, "MOST_TASKS", 24)
    assert len(job_with_rounds(job, 0.0, nothing).images) == 20
    monkeypatch.setattr(pass_length, "MOST_TASKS", 9)
    assert job_with_rounds(job, 0.0, no_look) is job


def test_the_warm_up_tells_the_engines_rate() -> None:
    done = warm_up(lambda: time.sleep(0.01) or 4, 0.01)  # type: ignore[func-returns-value]
    assert 0 < done.rate <= 400


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[list[Task]]:
    """The tasks of every pass, the warm-up's first. The engine is of unknown speed."""
    found: list[list[Task]] = []

    def predict(engine: Engine, tasks: list[Task], options: PredictOptions) -> Summary:
        assert not [task for task in tasks if task.output and task.output.exists()]
        found.append(tasks)
        return predict_masks(engine, tasks, options)

    for module in (engine_row, timed_pass):
        monkeypatch.setattr(module, "predict_masks", predict)
    told = WarmUp(seconds=0.0, stable=True)
    monkeypatch.setattr(EngineClock, "warm_up", lambda clock: told)
    return found


def files_in(folder: Path) -> set[str]:
    return {str(path) for path in folder.iterdir() if path.is_file()}


def test_rounds_are_counted_and_the_first_ones_masks_stay(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    noted: list[list[Task]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, an_image=0.0008)
    monkeypatch.setattr(file_passes, "seconds_of", lambda one: (one(), 2.0)[1])
    job = job_of(checkpoint_file(), pictures, tmp_path / "o")
    result = measure_row(job)
    assert [len(tasks) for tasks in noted[1:]] == [5] + [15] * 4, "looks, two passes, the stages'"
    for tasks in noted[2:]:
        assert set(Counter(task.source for task in tasks).values()) == {3}
        assert [str(task.output) for task in tasks[:5]] == job.outputs
        assert len({task.output for task in tasks}) == 15
    assert result.files_to_files == [7.5, 7.5]
    assert result.pass_images == 15
    assert result.stages is not None
    assert result.stages.images == 15
    assert files_in(tmp_path / "o") == set(job.outputs)
    plain = tmp_path / "plain"
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        tasks = [
            Task(Path(i), plain / Path(o).name)
            for i, o in zip(job.images, job.outputs, strict=True)
        ]
        predict_masks(engine, tasks, PredictOptions())
    for path in map(Path, job.outputs):
        np.testing.assert_array_equal(read_mask(path), read_mask(plain / path.name))


def test_a_pass_that_is_long_has_every_image_once(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    noted: list[list[Task]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, an_image=1.0)
    result = measure_row(job := job_of(checkpoint_file(), pictures, tmp_path / "o"))
    assert {len(tasks) for tasks in noted[1:]} == {result.pass_images} == {5}
    assert files_in(tmp_path / "o") == set(job.outputs)


@pytest.mark.usefixtures("noted")
def test_rounds_of_a_row_that_fails_are_removed(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, an_image=0.0008)
    job = job_of(checkpoint_file(), pictures, tmp_path / "o")

    def fails(*_: object) -> None:
        assert len(files_in(tmp_path / "o")) == 15
        raise UserError("the device is lost")

    monkeypatch.setattr(engine_row, "_timed_stages", fails)
    with pytest.raises(UserError, match="lost"):
        measure_row(job)
    assert files_in(tmp_path / "o") == set(job.outputs)


@pytest.fixture
def bench_run(pictures: Path, tmp_path: Path) -> Run:
    images = sorted(pictures.iterdir())
    spec = balanced_checkpoint().spec
    return Run(images, {}, tmp_path, BenchOptions(images=pictures), spec)


def test_rounds_of_a_row_that_was_given_up_are_removed(
    bench_run: Run, checkpoint_file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given_up(job: RowJob, timeout: float) -> str:
        stand_in(monkeypatch, an_image=0.4)
        longer = job_with_rounds(replace(job, until=float("inf")), 0.0, nothing)
        assert len(longer.outputs) == 2 * 5
        for path in longer.outputs:
            Path(path).touch()
        return "given up"

    monkeypatch.setattr(run, "run_job", given_up)
    model = checkpoint_file()
    bench_run.measure(entries_from_models([model], model), peers=False)
    assert bench_run.rows[0].reason == "given up"
    outputs = bench_run.outputs(0)
    assert files_in(outputs[0].parent) == set(map(str, outputs))


def test_the_bench_tells_the_last_passes_what_the_first_had(
    bench_run: Run, checkpoint_file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[RowJob] = []

    def answer(module: str, job: RowJob, timeout: float) -> dict[str, Any]:
        jobs.append(job)
        return {"passes": {"rates": [5.0], "others": None, "images": 9}}

    def run_job(job: RowJob, timeout: float) -> Any:
        assert job.pass_images is None
        return replace(row_result("x", [4.0]), pass_images=9)

    monkeypatch.setattr(run, "answer_from_process", answer)
    monkeypatch.setattr(run, "run_job", run_job)
    model = checkpoint_file()
    bench_run.measure(entries_from_models([model, model], model), peers=False)
    assert [job.pass_images for job in jobs] == [9] * bench_run.options.repeats
    assert RowJob(**job_fields(json.dumps(asdict(jobs[0])))) == jobs[0]


def counted(bench: Bench, count: int) -> Bench:
    results = [row.result and replace(row.result, pass_images=count) for row in bench.rows]
    rows = zip(bench.rows, results, strict=True)
    return replace(bench, rows=tuple(replace(row, result=result) for row, result in rows))


def told(bench: Bench) -> list[str]:
    return [line for line in context_lines(bench) if line.startswith("images of a pass")]


def test_the_report_says_how_many_images_a_pass_had(bench: Bench) -> None:
    assert told(bench) == [], "an older report does not tell"
    assert told(counted(bench, bench.images)) == []
    (line,) = told(counted(bench, 21))
    assert line.endswith("not all 7 once: reference 21, openvino 21, wrong 21")
    cells = [
        row["pass_images"] for row in csv.DictReader(csv_text(counted(bench, 21)).splitlines())
    ]
    assert cells == ["21", "21", "21", ""]


def test_a_report_without_the_number_is_still_read() -> None:
    raw = json.loads(json.dumps(asdict(row_result("x", [1.0]))))
    del raw["pass_images"], raw["warm_up"]["rate"]
    assert result_from_dict(raw).pass_images == 0


def test_masks_of_a_pass_before_are_put_aside_and_not_removed(tmp_path: Path) -> None:
    """Freed inodes would slow the pass that follows, on a file system without a journal."""
    folder = tmp_path / "masks-1"
    folder.mkdir()
    outputs = [folder / f"{index}.png" for index in range(3)]
    job = replace(job_of(tmp_path, tmp_path, folder), outputs=[str(path) for path in outputs])
    for number in range(2):
        for path in outputs[: 2 + number]:
            path.write_text(str(number))
        file_passes.clear_outputs(job)
        assert not list(folder.iterdir())
    file_passes.clear_outputs(job)
    asides = sorted(len(list(path.iterdir())) for path in tmp_path.glob("masks-1-aside-*"))
    assert asides == [2, 3]


def test_what_is_put_aside_goes_where_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "masks-1"
    folder.mkdir()
    files = [folder / f"{index}{pass_length._MARK}2.png" for index in range(4)]
    for path in (*files, folder / "0.png"):
        path.touch()
    pass_length.put_rounds_aside(folder)
    assert [path.name for path in folder.iterdir()] == ["0.png"]
    monkeypatch.setattr(file_passes, "MOST_ASIDE", 4)
    file_passes.remove_aside(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(file_passes, "MOST_ASIDE", 3)
    file_passes.remove_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["masks-1"]
