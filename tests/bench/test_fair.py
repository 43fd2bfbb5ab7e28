"""What the baseline is owed: its own precision and decoder, as many passes, the same images."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bench.conftest import row_result
from tests.bench.test_bench import job_of
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import engine_row, file_passes, run, timed_pass
from unetrt.bench import row as row_module
from unetrt.bench.file_passes import FilePasses, time_passes
from unetrt.bench.filled import Batch
from unetrt.bench.job import REFERENCE, RowJob
from unetrt.bench.options import BenchOptions
from unetrt.bench.pass_length import spread_out
from unetrt.bench.process import answer_from_process, run_alone
from unetrt.bench.reference import ReferenceLoop
from unetrt.bench.row import measure_again, measure_row
from unetrt.bench.rows import Entry, entries_from_models
from unetrt.bench.run import Run
from unetrt.bench.stock import stock_convolutions
from unetrt.bench.sweep import SweepJob, _keep_in_flight
from unetrt.contract.masks import mask_pixels, read_mask
from unetrt.contract.resize import network_input
from unetrt.engine.base import Engine
from unetrt.runtime.digest import digest_from_model
from unetrt.runtime.journal import FOLDER, NAME
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, Summary

CheckpointFile = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_tf32_is_as_pytorch_has_it_while_a_gpu_is_timed_and_off_afterwards() -> None:
    torch.backends.cudnn.allow_tf32 = False
    with stock_convolutions("cuda:0") as differs:
        assert differs
        assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    with stock_convolutions("cpu") as differs:
        assert not differs
        assert not torch.backends.cudnn.allow_tf32


def test_the_reference_is_timed_as_shipped_and_its_masks_made_in_fp32(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a stand-in for what TF32 does: masks that are written while it is on are removed."""
    job = job_of(checkpoint_file(), pictures, tmp_path / "o", REFERENCE)

    @contextmanager
    def stock(device: str) -> Iterator[bool]:
        assert device == "cpu"
        yield True
        assert all(Path(path).is_file() for path in job.outputs), "it is timed inside"
        for path in job.outputs:
            Path(path).unlink()

    monkeypatch.setattr(row_module, "stock_convolutions", stock)
    result = measure_row(job)
    assert all(Path(path).is_file() for path in job.outputs), "made again outside"
    assert "TF32" in result.label
    assert (result.precision, result.multiplies) == ("fp32", "tf32")


def deep_picture(path: Path, factor: int) -> Path:
    grey = steel(3, 40, 56)[..., 0].astype(np.uint16)
    Image.fromarray(grey * np.uint16(factor)).save(path)
    return path


@pytest.mark.parametrize(("factor", "bit_depth"), [(257, None), (16, 12)])
@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_greys_are_scaled_where_pillow_would_clip_them(
    factor: int, bit_depth: int | None, name: str, tmp_path: Path
) -> None:
    path = deep_picture(tmp_path / name, factor)
    checkpoint = balanced_checkpoint()
    image, size = ReferenceLoop(checkpoint, "cpu", bit_depth).load(path)
    expected, expected_size = network_input(path, checkpoint.spec, bit_depth=bit_depth)
    assert size == expected_size
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal((image[0, 0] * 255).round().numpy(), expected[..., 0])


def test_a_depth_that_is_given_reaches_both_rows(
    checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    (tmp_path / "imgs").mkdir()
    for index in range(3):
        deep_picture(tmp_path / "imgs" / f"{index}.png", 16)
    masks = []
    for place, backend in enumerate((REFERENCE, "auto")):
        job = job_of(checkpoint_file(), tmp_path / "imgs", tmp_path / str(place), backend)
        measure_row(replace(job, bit_depth=12))
        masks.append(np.stack([read_mask(Path(path)) for path in job.outputs]))
    assert np.mean(masks[0] == masks[1]) > 0.999


def passes_of(job: RowJob, seconds: float) -> list[float]:
    return time_passes(lambda: time.sleep(seconds), job).rates


def test_every_row_has_two_passes_unless_its_time_forbids(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    job = replace(job_of(checkpoint_file(), pictures, tmp_path / "o"), seconds=1e-6, repeats=1)
    assert len(passes_of(job, 0.02)) == 2
    assert len(passes_of(replace(job, seconds=1.0, repeats=4), 0.001)) == 4
    assert len(passes_of(replace(job, until=time.time() + 0.1), 0.08)) == 1
    assert file_passes.FEWEST == 2


def test_every_pass_is_a_first_run_with_the_journal_that_predict_keeps(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that found the journal of the pass before would skip every image."""
    job = replace(job_of(checkpoint_file(), pictures, tmp_path / "o"), seconds=1e-6)
    found: list[tuple[int, bool]] = []
    real = engine_row.predict_masks

    def looked_at(engine: Engine, tasks: list[Task], options: PredictOptions) -> Summary:
        journal = options.journal
        assert journal is not None
        assert journal.model == digest_from_model(Path(job.model))
        assert not journal.restart, "a restart reads what was there"
        left = any(task.output and task.output.exists() for task in tasks)
        summary = real(engine, tasks, options)
        lines = (journal.output_dir / FOLDER / NAME).read_text().splitlines()
        found.append((sum('"done"' in line for line in lines), left))
        return summary

    monkeypatch.setattr(engine_row, "predict_masks", looked_at)
    monkeypatch.setattr(timed_pass, "predict_masks", looked_at)
    result = measure_row(job)
    assert len(result.files_to_files) == 2
    assert found[1:] == [(5, False)] * 3, "two passes and that of the stages, all of it each time"
    assert all(Path(path).is_file() for path in job.outputs)
    assert result.shapes == 2


def test_emptying_the_folder_is_not_timed(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = replace(job_of(checkpoint_file(), pictures, tmp_path / "o"), repeats=2)
    monkeypatch.setattr(file_passes, "clear_outputs", lambda job: time.sleep(0.2))
    assert min(passes_of(job, 0.001)) > len(job.images) / 0.2


def test_the_images_are_spread_over_the_folder() -> None:
    paths = [Path(f"{index:03}.png") for index in range(100)]
    assert [path.stem for path in spread_out(paths, 4)] == ["000", "025", "050", "075"]
    assert len(spread_out(paths, 64)) == len(set(spread_out(paths, 64))) == 64
    assert spread_out(paths, 100) == spread_out(paths, 1000) == paths


@pytest.fixture
def bench_run(checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path) -> Run:
    options = BenchOptions(images=pictures)
    spec = balanced_checkpoint().spec
    return Run(sorted(pictures.iterdir()), {}, tmp_path, options, spec)


def leave_masks(monkeypatch: pytest.MonkeyPatch, on_second: Callable[[], None]) -> list[RowJob]:
    """Rows that are measured at once, each with the same masks; the jobs in their order."""
    jobs: list[RowJob] = []
    spec = balanced_checkpoint().spec
    mask = Image.fromarray(mask_pixels(np.eye(40, 56, dtype=np.uint8), spec))

    def run_job(job: RowJob, timeout: float) -> object:
        jobs.append(job)
        if len(jobs) == 2:
            on_second()
        for path in job.outputs:
            mask.save(path)
        return row_result(job.name, [10.0, 12.0])

    monkeypatch.setattr(run, "run_job", run_job)
    return jobs


@pytest.mark.parametrize(
    ("runs", "count", "turns"),
    [
        ("", 3, {}),
        ("x", 3, {}),
        ("y", 3, {1: 3}),
        ("yyxyyy", 3, {2: 1, 5: 1, 6: 1}),
        ("xyy", 1, {3: 1}),
    ],
)
def test_the_baseline_s_turns_are_spread_over_the_rows_that_run(
    runs: str, count: int, turns: dict[int, int]
) -> None:
    reasons = ["", *("" if run == "y" else "left out" for run in runs)]
    entries = [
        Entry(name=f"row {i}", model=Path("net.pth"), reason=reason)
        for i, reason in enumerate(reasons)
    ]
    assert run.baseline_turns(entries, count) == turns


def test_the_baseline_is_measured_again_between_the_rows_and_all_count(
    bench_run: Run, checkpoint_file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = leave_masks(monkeypatch, on_second=lambda: None)
    again: list[RowJob] = []

    def answer(module: str, job: RowJob, timeout: float) -> object:
        again.append(job)
        return {"passes": {"rates": [20.0 + len(again)], "others": 0.25 / len(again)}}

    monkeypatch.setattr(run, "answer_from_process", answer)
    model = checkpoint_file()
    bench_run.measure(entries_from_models([model, model], model), peers=False)
    baseline = bench_run.rows[0].result
    assert baseline is not None
    assert baseline.files_to_files == [11.0, 21.0, 22.0, 23.0], "a rate of each process"
    assert (baseline.files_rate, baseline.again, baseline.others) == (21.5, 3, 0.25)
    for job in again:
        assert job.files_only
        assert (job.backend, job.repeats) == (REFERENCE, 1)
        assert not set(job.outputs) & {path for job in jobs for path in job.outputs}
    monkeypatch.setattr(run, "answer_from_process", lambda *_: "given up after 1 s")
    bench_run.rows = []
    bench_run.measure(entries_from_models([model, model], model), peers=False)
    assert bench_run.notes == ["reference loop was not measured again: given up after 1 s"]


def test_passes_of_the_baseline_alone(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(checkpoint_file(), pictures, tmp_path / "o", REFERENCE)
    found = measure_again(replace(job, files_only=True, repeats=1))
    assert isinstance(found, FilePasses)
    assert len(found.rates) == 1
    assert all(Path(path).is_file() for path in job.outputs)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_keeps_the_rows_that_are_finished(
    bench_run: Run, checkpoint_file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_masks(monkeypatch, on_second=interrupt)
    model = checkpoint_file()
    entries = entries_from_models([model, model], model)
    bench_run.measure(entries, peers=False)
    assert bench_run.interrupted
    rows = bench_run.all_rows(entries)
    assert [row.result is not None for row in rows] == [True, False, False]
    assert [row.reason for row in rows[1:]] == ["interrupted"] * 2
    monkeypatch.setattr(run, "run_job", lambda *_: interrupt())
    bench_run.rows = []
    with pytest.raises(KeyboardInterrupt):
        bench_run.measure(entries_from_models([model], model), peers=False)


SLEEPER = """
import os, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getsid(0), other.pid, flush=True)
time.sleep(60)
"""


def test_a_rows_process_ends_with_all_that_it_started_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C of the terminal reaches the bench alone."""
    seen: list[int] = []

    def communicate(child: subprocess.Popen[str], *_: object) -> tuple[str, str]:
        assert child.stdout is not None
        seen.extend(map(int, child.stdout.readline().split()))
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(KeyboardInterrupt):
        run_alone([sys.executable, "-c", SLEEPER], timeout=60)
    session, other = seen
    assert session != os.getsid(0)
    end = time.monotonic() + 10
    while is_running(other) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(other)
    assert capfd.readouterr().err == ""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_process_that_answers_nonsense_gives_a_reason(tmp_path: Path) -> None:
    job = SweepJob(model="x", device="cpu", images=[], seconds=1.0)
    assert "ended with status 1" in answer_from_process("no.such.module", job, 60)
    assert "answered with" in answer_from_process("this", job, 60)


class Instant:
    """A slot whose batch takes a millisecond."""

    def submit(self, n: int, size: object) -> None:
        pass

    def masks(self) -> None:
        time.sleep(0.02)


def test_a_point_of_the_sweep_runs_the_batches_that_a_percentile_needs() -> None:
    """Up to five times the seconds: on a crowded machine too these suffice for it."""
    job = SweepJob(model="x", device="cpu", images=[], seconds=0.5, fewest=30)
    batch = Batch([steel(0, 16, 16)], (16, 16))
    two: list[Any] = [Instant(), Instant()]
    times, _ = _keep_in_flight(two, batch, replace(job, fewest=0), 1)
    assert len(times) < 30
    times, _ = _keep_in_flight(two, batch, job, 1)
    assert len(times) >= 30
    times, _ = _keep_in_flight(two[:1], batch, replace(job, seconds=0.02, fewest=10**6), 1)
    assert len(times) < 10
