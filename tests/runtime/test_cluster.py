"""A job on a real Ray cluster of several processes: the masks of one engine, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.runtime.crews import (
    Undisturbed,
    check_same,
    in_every_process,
    journaled,
    options_of,
    undisturbed,
)
from tests.runtime.test_journal import counts
from unetrt.contract.errors import UserError
from unetrt.contract.modules import import_module, is_installed
from unetrt.engine.open import open_engine
from unetrt.runtime.cluster import Cluster, ClusterOptions
from unetrt.runtime.journal import FOLDER, NAME
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks, run_job
from unetrt.runtime.work import Outcome
from unetrt.runtime.worker import EngineOptions, Opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("ray"), reason="Ray is not installed here"),
]

PICTURES = 200


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported()


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(model, tmp_path_factory.mktemp("whole"), PICTURES, (7, 140))


@dataclass
class Disturbed:
    """A cluster to which something happens after the first outcome."""

    cluster: Cluster
    event: Callable[[], None]
    happened: list[int] = field(default_factory=list)

    @property
    def opened(self) -> Opened:
        return self.cluster.opened

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        for outcome in self.cluster.write_masks(tasks, options, stop):
            if not self.happened:
                self.happened.append(1)
                self.event()
            yield outcome


def actors() -> list[int]:
    """The processes in which Ray runs engines."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:  # no process, or one that has just ended
            continue
        if title.startswith(b"ray::") and b"InferRows" in title:
            found.append(int(process.name))
    return found


def run_on(
    model: Path, images: Path, out: Path, engines: int, event: Callable[[], None]
) -> tuple[Summary, bool]:
    options = ClusterOptions(address="local", engines=engines)
    with Cluster(EngineOptions(model=model), options) as cluster:
        crew = Disturbed(cluster, event)
        tasks = plan_tasks([str(images)], output_dir=out)
        summary = run_job(crew, tasks, options_of(out), threading.Event())
    return summary, bool(crew.happened)


def test_two_engines_of_which_one_is_killed(
    model: Path, whole: Undisturbed, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(min(actors()))
        os.kill(killed[0], signal.SIGKILL)

    summary, happened = run_on(model, whole.images, tmp_path / "out", 2, kill)
    assert happened
    assert killed
    assert counts(summary) == (PICTURES - 2, 2, 0)
    check_same(tmp_path / "out", whole)
    done = journaled(tmp_path / "out", "done")
    assert len(done) == len(set(done)) == PICTURES - 2, "every image once"
    assert sorted(summary.failures, key=str) == sorted(whole.summary.failures, key=str)
    again, happened = run_on(model, whole.images, tmp_path / "out", 1, lambda: None)
    assert counts(again) == (0, 2, PICTURES - 2)


def test_names_are_those_of_the_folder_that_the_command_runs_in(
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The processes of a cluster are where it was started, which is elsewhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/in").symlink_to(whole.images)
    monkeypatch.chdir(tmp_path)
    with Cluster(EngineOptions(model=model), ClusterOptions(address="local")) as cluster:
        monkeypatch.chdir("here")
        tasks = plan_tasks(["in"], output_dir=Path("out"))
        summary = run_job(cluster, tasks, options_of(Path("out")), threading.Event())
    assert counts(summary) == (PICTURES - 2, 2, 0)
    assert {failure["input"] for failure in summary.failures} <= {str(t.source) for t in tasks}
    check_same(tmp_path / "here/out", whole)
    assert not [w for w in recwarn if "ray_remote_args" in str(w.message)]  # users cannot help it


def test_a_machine_of_one_cpu(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1}')
    ended, options = threading.Event(), ClusterOptions(address="local")
    waited = threading.Timer(60, ended.set)  # it would wait for ever
    waited.daemon = True
    waited.start()
    with Cluster(EngineOptions(model=model), options) as cluster:
        tasks = plan_tasks([str(whole.images)], output_dir=tmp_path / "out")
        summary = run_job(cluster, tasks, options_of(tmp_path / "out"), ended)
    waited.cancel()
    assert counts(summary) == (PICTURES - 2, 2, 0)


def test_an_output_that_cannot_be_written_ends_the_job(
    model: Path, whole: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    tasks = plan_tasks([str(whole.images)], output_dir=out)
    (out / FOLDER).mkdir(parents=True)
    (out / "a b").mkdir()
    (out / "a b" / "ü").symlink_to("/proc")  # root may write anywhere, but not there
    options = ClusterOptions(address="local", engines=1)
    with (
        Cluster(EngineOptions(model=model), options) as cluster,
        pytest.raises(UserError, match="cannot write"),
    ):
        run_job(cluster, tasks, options_of(out), threading.Event())


def test_a_stop_leaves_a_journal_that_goes_on(
    model: Path, whole: Undisturbed, tmp_path: Path
) -> None:
    out, stop = tmp_path / "out", threading.Event()
    options = ClusterOptions(address="local", engines=1)
    with Cluster(EngineOptions(model=model), options) as cluster:
        crew = Disturbed(cluster, stop.set)
        tasks = plan_tasks([str(whole.images)], output_dir=out)
        summary = run_job(crew, tasks, options_of(out), stop)
    assert summary.left > 0
    assert summary.planned == summary.done + summary.failed + summary.skipped
    with open_engine(model) as engine:
        predict_masks(engine, tasks, options_of(out))
    check_same(out, whole)


STUCK = """
import time
from unetrt.runtime import work

work.read_reduced = lambda *arguments, **options: time.sleep(600)
"""

DEADLY = """
import os, signal
from unetrt.runtime.cluster_work import InferRows

InferRows.__call__ = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stop_is_heard_while_no_row_comes(
    model: Path,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a traceback of what is cut off."""
    in_every_process(monkeypatch, tmp_path, STUCK)
    tasks, stop = plan_tasks([str(whole.images)], output_dir=tmp_path / "out"), threading.Event()
    with Cluster(EngineOptions(model=model), ClusterOptions(address="local")) as cluster:
        threading.Timer(5, stop.set).start()
        begun = time.monotonic()
        summary = run_job(cluster, tasks, options_of(tmp_path / "out"), stop)
    assert summary.left == PICTURES
    assert time.monotonic() - begun < 60
    assert "Traceback" not in capfd.readouterr().err


def test_a_stop_is_heard_while_the_model_is_opened(model: Path) -> None:
    options = ClusterOptions(address="local")
    with pytest.raises(KeyboardInterrupt):
        Cluster(EngineOptions(model=model), options, stop=lambda: True)


def test_a_batch_that_kills_its_actors_ends_the_job(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_every_process(monkeypatch, tmp_path, DEADLY)
    monkeypatch.setattr("unetrt.runtime.cluster.ACTOR_RETRIES", 3)  # all twenty take two minutes
    tasks = plan_tasks([str(whole.images)], output_dir=tmp_path / "out")
    with (
        Cluster(EngineOptions(model=model), ClusterOptions(address="local")) as cluster,
        pytest.raises(UserError, match="the Ray cluster could not do its work") as caught,
    ):
        run_job(cluster, tasks, options_of(tmp_path / "out"), threading.Event())
    assert "actor" in str(caught.value.seen)
    assert "same command" in str(caught.value.hint)


def test_a_model_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match="checkpoint"):
        Cluster(EngineOptions(model=tmp_path / "m.pth"), ClusterOptions(address="local"))


def test_no_cluster_at_an_address(model: Path) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1") as caught:
        Cluster(EngineOptions(model=model), ClusterOptions(address="127.0.0.1:1"))
    assert "ray start --head" in str(caught.value.hint)


@pytest.mark.parametrize("named", ["argument", "environment"])
def test_a_client_s_address_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Ray Data needs a driver that is in the cluster."""
    address = "ray://127.0.0.1:10001"
    if named == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    options = ClusterOptions(address=address if named == "argument" else None)
    with pytest.raises(UserError, match="through Ray's client") as caught:
        Cluster(EngineOptions(model=model), options)
    assert "--ray HOST:6379" in str(caught.value.hint)


def test_a_cluster_that_asks_for_a_token(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own error is neither an OSError nor a RuntimeError."""
    error = import_module("ray").exceptions.AuthenticationError("no token was found")
    monkeypatch.setattr("ray.init", Mock(side_effect=error))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = ClusterOptions(address=f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1") as caught:
            Cluster(EngineOptions(model=model), options)
    assert "no token was found" in str(caught.value.seen)
    assert "RAY_AUTH_MODE=token" in str(caught.value.hint)


OLD = """
import unetrt.runtime.cluster as cluster
from unetrt.runtime.cluster_work import open_once
cluster._told = lambda *arguments: open_once(*arguments)
cluster._told.__module__, cluster._told.__qualname__ = cluster.__name__, "_told"
"""
OTHER = """
import unetrt.runtime.cluster as cluster
cluster.code_digest = lambda: "another"
"""
NONE = """
import sys
sys.modules["unetrt"] = None
"""


@pytest.mark.parametrize("code", [OLD, OTHER, NONE], ids=["old", "other", "none"])
def test_a_cluster_of_another_version_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    in_every_process(monkeypatch, tmp_path, code)
    with pytest.raises(UserError, match="do not have this unetrt") as caught:
        Cluster(EngineOptions(model=model), ClusterOptions(address="local"))
    assert "pip install" in str(caught.value.hint)


def test_gpus_that_are_not_there_are_asked_for(model: Path) -> None:
    options = ClusterOptions(address="local", device="cuda")
    with pytest.raises(UserError, match="the cluster has no GPU"):
        Cluster(EngineOptions(model=model), options)


def test_real_images(real_data: Path, model: Path, tmp_path: Path) -> None:
    """585 images of NEU-Seg: the masks that the plain pipeline writes."""
    images = real_data / "neu_seg/batch/imgs"
    summary, _ = run_on(model, images, tmp_path / "ray", 2, lambda: None)
    with open_engine(model) as engine:
        tasks = plan_tasks([str(images)], output_dir=tmp_path / "one")
        predict_masks(engine, tasks, options_of(tmp_path / "one"))
    assert counts(summary) == (len(tasks), 0, 0)
    for task in tasks:
        assert task.output is not None
        name = task.output.relative_to(tmp_path / "one")
        assert (tmp_path / "ray" / name).read_bytes() == task.output.read_bytes()
    lines = (tmp_path / "ray" / FOLDER / NAME).read_text().splitlines()
    entries = [json.loads(line) for line in lines[1:]]
    assert len({entry["input"] for entry in entries if "planned" not in entry}) == len(tasks)
