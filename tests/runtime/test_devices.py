"""Workers on several devices: every image once, and the masks of one engine; stops, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runtime.crews import (
    BROKEN,
    LATE,
    PICTURES,
    Disturbed,
    Undisturbed,
    check_same,
    in_every_process,
    journaled,
    options_of,
    run_on,
    undisturbed,
)
from tests.runtime.test_journal import counts
from tests.runtime.test_predict import files_below
from unetrt.contract import progress
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.open import open_engine
from unetrt.runtime import devices
from unetrt.runtime.devices import Workers, _model_of, devices_from_text
from unetrt.runtime.journal import FOLDER
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks, run_job
from unetrt.runtime.worker import EngineOptions, Opened


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    """An ONNX file: ONNX Runtime starts in a fraction of the time that PyTorch takes."""
    return exported()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(model, tmp_path_factory.mktemp("whole"), PICTURES, BROKEN)


def test_a_job_that_is_asked_to_stop_finishes_what_is_in_flight(
    model: Path, whole: Undisturbed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, stop = tmp_path / "out", threading.Event()
    tasks = plan_tasks([str(whole.images)], output_dir=out)
    with Workers(EngineOptions(model=model), ["cpu", "cpu"]) as workers:
        crew = Disturbed(workers, {5: stop.set})
        summary = run_job(crew, tasks, options_of(out), stop)
    assert summary.left > 0
    assert counts(summary) == (summary.done, summary.failed, summary.left)
    assert "died" not in caplog.text, "to stop is not to die"
    masks = [name for name in files_below(out) if not name.startswith(FOLDER)]
    assert len(masks) == summary.done == len(journaled(out, "done"))
    with Workers(EngineOptions(model=model), ["cpu"]) as workers:
        rest = run_job(workers, tasks, options_of(out), threading.Event())
    assert rest.skipped == summary.done
    check_same(out, whole)


def test_a_stop_does_not_wait_for_who_still_opens_the_model(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", str(tmp_path / "held"))
    in_every_process(monkeypatch, tmp_path, LATE)
    tasks, stop = plan_tasks([str(whole.images)], output_dir=tmp_path / "out"), threading.Event()
    with Workers(EngineOptions(model=model), ["cpu", "cpu"]) as workers:
        crew = Disturbed(workers, {5: stop.set})
        begun = time.monotonic()
        summary = run_job(crew, tasks, options_of(tmp_path / "out"), stop)
    assert summary.left > 0
    assert time.monotonic() - begun < 60, "half of what the second one takes"


def test_an_output_that_cannot_be_written_is_one_error(
    model: Path, whole: Undisturbed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    tasks = plan_tasks([str(whole.images)], output_dir=out)
    blocked = out / "a b" / "ü"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.symlink_to("/proc")  # root may write anywhere, but not there
    with (
        Workers(EngineOptions(model=model), ["cpu", "cpu"]) as workers,
        pytest.raises(UserError, match="cannot write") as caught,
    ):
        run_job(workers, tasks, options_of(out), threading.Event())
    assert str(blocked) in str(caught.value)
    assert "died" not in caplog.text
    blocked.unlink()
    with open_engine(model) as engine:
        predict_masks(engine, tasks, options_of(out))
    check_same(out, whole)


def test_a_model_that_does_not_open_is_the_error_of_the_job(
    model: Path, checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000])
    before = threading.active_count()
    with pytest.raises(UserError) as caught:
        Workers(EngineOptions(model=broken), ["cpu", "cpu"])
    assert "broken.onnx" in str(caught.value)
    assert threading.active_count() == before


def test_each_worker_has_its_share_of_the_cores(model: Path) -> None:
    with Workers(EngineOptions(model=model), ["cpu", "cpu"]) as workers:
        options = workers._share_of(PredictOptions())
        assert options.pipeline.load_threads == max(1, devices.usable_cores() // 2)
        assert workers.label == "onnxruntime fp32, a process each on cpu cpu"


def test_an_engine_keeps_to_the_threads_that_it_is_given(
    model: Path, checkpoint_file: Callable[..., Path]
) -> None:
    before = torch.get_num_threads()
    with open_engine(model, "openvino", threads=1) as openvino:
        assert openvino.streams == 1  # type: ignore[attr-defined]
    with open_engine(model, "onnxruntime", threads=3) as runtime:
        assert runtime._session.get_session_options().intra_op_num_threads == 3  # type: ignore[attr-defined]
    try:
        open_engine(checkpoint_file(), device="cpu", threads=2).close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", ["cuda:0"]),
        ("0,0", ["cuda:0", "cuda:0"]),
        ("0,1,cuda:3", ["cuda:0", "cuda:1", "cuda:3"]),
        ("cpu", ["cpu"]),
        ("cpu:3", ["cpu", "cpu", "cpu"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("0,cpu:2", ["cuda:0", "cpu", "cpu"]),
    ],
)
def test_devices_are_named_by_number_or_as_processors(text: str, expected: list[str]) -> None:
    assert devices_from_text(text) == expected


@pytest.mark.parametrize("text", ["", "gpu", "0,", "cpu:0", "-1", "cpu:x", "cuda"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no such devices") as caught:
        devices_from_text(text)
    assert "cpu:N" in str(caught.value.expected)


def test_all_are_those_that_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: 3)
    assert devices_from_text("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(devices, "cuda_devices", lambda: 0)
    with pytest.raises(UserError, match="no CUDA device") as caught:
        devices_from_text("all")
    assert "--devices cpu:" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_masks_of_every_backend_are_those_of_one_process(
    backend: str,
    model: Path,
    checkpoint_file: Callable[..., Path],
    whole: Undisturbed,
    tmp_path: Path,
) -> None:
    """One process with all the cores, three with a share of them."""
    path = checkpoint_file() if backend == "torch" else model
    with open_engine(path, backend) as engine:
        tasks = plan_tasks([str(whole.images)], output_dir=tmp_path / "one")
        predict_masks(engine, tasks, options_of(tmp_path / "one"))
    tasks = plan_tasks([str(whole.images)], output_dir=tmp_path / "three")
    with Workers(EngineOptions(model=path, backend=backend), ["cpu"] * 3) as workers:
        run_job(workers, tasks, options_of(tmp_path / "three"), threading.Event())
    check_same(tmp_path / "three", Undisturbed(whole.images, tmp_path / "one", whole.summary))


SLOW = """
import contextlib, os, pathlib, time
from unetrt.runtime import work

read, held, mine = work.read_reduced, pathlib.Path(os.environ["HELD"]), []


def slow(*arguments, **options):
    with contextlib.suppress(FileExistsError):
        held.touch(exist_ok=False)
        mine.append(True)
    end = time.monotonic() + 60
    while mine and not held.read_text():
        if time.monotonic() > end:
            held.write_text("nobody came")
        time.sleep(0.01)
    return read(*arguments, **options)


work.read_reduced = slow
"""


def test_a_slow_device_does_not_hold_the_others(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two stands still until the other has done more than half of the pictures."""
    held, seen = tmp_path / "held", list[str]()
    monkeypatch.setenv("HELD", str(held))
    in_every_process(monkeypatch, tmp_path, SLOW)

    def release() -> None:
        seen.append(held.read_text())
        held.write_text("go on")

    def disturb(crew: Disturbed) -> None:
        crew.events[PICTURES // 2 + 2] = release

    summary = run_on(model, whole.images, tmp_path / "out", "cpu:2", disturb)
    assert seen == [""], "it still stood still"
    assert counts(summary) == (PICTURES - 2, 2, 0)
    check_same(tmp_path / "out", whole)


def test_all_devices_have_one_progress_bar(
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    every = "from unetrt.contract import progress\nprogress.LINE_SECONDS = 0.0\n"
    in_every_process(monkeypatch, tmp_path, every)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run_on(model, whole.images, tmp_path / "out", "cpu:2", lambda _: None)
    told = [line.split(" images,")[0] for line in capfd.readouterr().err.splitlines()]
    assert told == [f"predict: {place}/{PICTURES}" for place in range(1, PICTURES + 1)]


def test_gpus_of_two_kinds_run_one_checkpoint_in_a_precision_each() -> None:
    spec = ModelSpec()
    ampere, turing = (Opened(spec, "torch", found, 1, "", "") for found in ("tf32", "fp32"))
    assert _model_of(ampere) == _model_of(turing)
    plans = (Opened(spec, "tensorrt", found, 1, "", "") for found in ("fp16", "fp32"))
    assert len({_model_of(plan) for plan in plans}) == 2
