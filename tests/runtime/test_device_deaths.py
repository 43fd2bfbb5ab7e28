"""Workers that die: every image once, whoever is killed, and by what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

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
from unetrt.contract.errors import UserError
from unetrt.engine.open import open_engine
from unetrt.runtime import devices
from unetrt.runtime.devices import Workers
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import predict_masks, run_job
from unetrt.runtime.worker import EngineOptions


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    """An ONNX file: ONNX Runtime starts in a fraction of the time that PyTorch takes."""
    return exported()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(model, tmp_path_factory.mktemp("whole"), PICTURES, BROKEN)


def test_four_workers_of_which_one_is_killed(
    model: Path, whole: Undisturbed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"

    def disturb(crew: Disturbed) -> None:
        crew.events[10] = crew.kill_the_busiest

    with caplog.at_level(logging.WARNING, "unetrt"):
        summary = run_on(model, whole.images, out, "cpu:4", disturb)
    assert "killed by SIGKILL" in caplog.text
    assert counts(summary) == (PICTURES - 2, 2, 0)
    check_same(out, whole)
    done = journaled(out, "done")
    assert len(done) == len(set(done)) == PICTURES - 2, "every image once"
    assert sorted(summary.failures, key=str) == sorted(whole.summary.failures, key=str)


def test_when_all_have_died_the_job_can_go_on(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(devices, "REPLACEMENTS", 0)

    def disturb(crew: Disturbed) -> None:
        crew.events |= {10: crew.kill_the_busiest, 40: crew.kill_the_busiest}

    with pytest.raises(UserError, match="every worker has died") as caught:
        run_on(model, whole.images, out, "cpu,cpu", disturb)
    assert caught.value.seen == "killed by SIGKILL"
    assert "same command" in str(caught.value.hint)
    before = journaled(out, "done")
    assert 18 <= len(before) < PICTURES - 2
    assert not [name for name in files_below(out) if name.endswith(".tmp")]
    with open_engine(model) as engine:
        tasks = plan_tasks([str(whole.images)], output_dir=out)
        summary = predict_masks(engine, tasks, options_of(out))
    assert summary.skipped == len(before)
    check_same(out, whole)


def test_a_worker_that_dies_while_it_opens_the_model(
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its place in the queue is nothing that anybody waits for."""
    out = tmp_path / "out"
    monkeypatch.setenv("HELD", str(tmp_path / "held"))
    in_every_process(monkeypatch, tmp_path, LATE)
    tasks = plan_tasks([str(whole.images)], output_dir=out)
    with Workers(EngineOptions(model=model), ["cpu", "cpu"]) as workers:
        late = [worker for worker in workers._alive if not worker.opened]
        assert late, "or nobody is killed while it opens the model"
        for worker in late:
            worker.process.kill()
        summary = run_job(workers, tasks, options_of(out), threading.Event())
    assert counts(summary) == (PICTURES - 2, 2, 0)
    assert caplog.text.count("has died") == len(late)
    check_same(out, whole)


POISON = """
import os, signal
from unetrt.runtime import work

read = work.read_reduced


def deadly(source, *arguments, **options):
    if source.name == os.environ["POISON"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(source, *arguments, **options)


work.read_reduced = deadly
"""


def test_an_image_that_kills_its_reader_costs_itself(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder would that crashes: in every process that reads it."""
    poisoned = sorted(path for path in whole.images.rglob("*") if path.is_file())[20]
    monkeypatch.setenv("POISON", poisoned.name)
    in_every_process(monkeypatch, tmp_path, POISON)
    summary = run_on(model, whole.images, tmp_path / "out", "cpu:3", lambda _: None)
    assert counts(summary) == (PICTURES - 3, 3, 0)
    reasons = {failure["input"]: failure["reason"] for failure in summary.failures}
    assert "two processes died" in reasons[str(poisoned)]


@pytest.mark.parametrize("names", ["cpu", "cpu:2"])
def test_an_image_that_kills_more_workers_than_there_are_costs_itself(
    names: str,
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first of all, and in a run that goes on the only one beside those that are broken."""
    out = tmp_path / "out"
    poisoned = plan_tasks([str(whole.images)], output_dir=out)[0].source
    monkeypatch.setenv("POISON", poisoned.name)
    in_every_process(monkeypatch, tmp_path, POISON)
    summary = run_on(model, whole.images, out, names, lambda _: None)
    assert counts(summary) == (PICTURES - 3, 3, 0)
    reasons = {failure["input"]: failure["reason"] for failure in summary.failures}
    assert "two processes died" in reasons[str(poisoned)]
    assert str(poisoned) in journaled(out, "failed")
    assert f"another one starts on {names[:3]}" in caplog.text
    again = run_on(model, whole.images, out, names, lambda _: None)
    assert counts(again) == (0, 3, PICTURES - 3)
    assert sorted(again.failures, key=str) == sorted(summary.failures, key=str)


FATAL = """
import os, signal
from unetrt.runtime import work

work.read_reduced = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_machine_on_which_every_image_kills_is_given_up(
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_every_process(monkeypatch, tmp_path, FATAL)
    with pytest.raises(UserError, match="every worker has died"):
        run_on(model, whole.images, tmp_path / "out", "cpu:2", lambda _: None)
    assert caplog.text.count("another one starts") == devices.REPLACEMENTS
