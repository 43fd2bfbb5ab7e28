"""A job on a real Ray cluster of several processes: the masks of one engine, whoever dies."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import pytest
from fsspec.registry import _registry

from tests.conftest import steel
from tests.runtime.conftest import write_picture
from tests.runtime.crews import (
    Undisturbed,
    check_same,
    in_every_process,
    journaled,
    options_of,
    undisturbed,
)
from tests.runtime.test_journal import counts
from tests.runtime.test_predict import files_below
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.contract.modules import import_module, is_installed
from unetrt.engine.open import open_engine
from unetrt.runtime.cluster import Cluster, ClusterOptions
from unetrt.runtime.journal import FOLDER
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


def run_on(model: Path, images: Path, out: Path, engines: int) -> Summary:
    options = ClusterOptions(address="local", engines=engines)
    with Cluster(EngineOptions(model=model), options) as cluster:
        tasks = plan_tasks([str(images)], output_dir=out)
        return run_job(cluster, tasks, options_of(out), threading.Event())


MORTAL = """
import contextlib, os, pathlib, signal
from unetrt.runtime.cluster_work import InferRows

infer = InferRows.__call__


def once(self, batch):
    with contextlib.suppress(FileExistsError):
        pathlib.Path(os.environ["KILLED"]).touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return infer(self, batch)


InferRows.__call__ = once
"""


@pytest.fixture(scope="module")
def many(model: Path, whole: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """585 images of NEU-Seg where UNETRT_TEST_DATA names a folder of them, else the drawn ones."""
    data = Path(os.environ.get("UNETRT_TEST_DATA", "")).resolve()
    images, out = data / "neu_seg/batch/imgs", tmp_path_factory.mktemp("many")
    if not images.is_dir():
        return whole
    with open_engine(model) as engine:
        tasks = plan_tasks([str(images)], output_dir=out)
        return Undisturbed(images, out, predict_masks(engine, tasks, options_of(out)))


def test_two_engines_of_which_one_is_killed(
    model: Path, many: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first call that infers, whichever actor has it: one that is idle loses nothing."""
    killed, out = tmp_path / "killed", tmp_path / "out"
    monkeypatch.setenv("KILLED", str(killed))
    monkeypatch.setattr("unetrt.runtime.cluster_work.INFER_BATCH", 32)  # some for each of the two
    in_every_process(monkeypatch, tmp_path, MORTAL)
    summary = run_on(model, many.images, out, 2)
    assert killed.exists(), "nobody was killed"
    assert counts(summary) == counts(many.summary)
    check_same(out, many)
    done = journaled(out, "done")
    assert len(done) == len(set(done)) == summary.done, "every image once"
    assert sorted(summary.failures, key=str) == sorted(many.summary.failures, key=str)
    again = run_on(model, many.images, out, 1)
    assert counts(again) == (0, summary.failed, summary.done)


COUNTED = """
import os
from unetrt.runtime.cluster_work import InferRows

infer = InferRows.__call__


def counted(self, batch):
    with open(os.environ["COUNTS"], "a") as file:
        file.write(f"{len(batch['row'])}\\n")
    return infer(self, batch)


InferRows.__call__ = counted
"""


def test_an_engine_gets_fewer_of_large_pictures_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A billion bytes of 128 pictures of a camera were in the memory several times."""
    monkeypatch.setenv("COUNTS", str(tmp_path / "counts"))
    monkeypatch.setattr("unetrt.runtime.cluster_work.INFER_BYTES", 10 << 20)
    in_every_process(monkeypatch, tmp_path, COUNTED)
    for index in range(12):
        write_picture(tmp_path / f"in/{index}.png", steel(index, 1280, 1918))
    assert counts(run_on(model, tmp_path / "in", tmp_path / "out", 1)) == (12, 0, 0)
    found = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert sum(found) == 12
    assert 1 <= max(found) <= 4, "an image at the network's scale, and its mask, take 3 MB or 5"


SHELF = """
import os
import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class Shelf(DirFileSystem):
    protocol, sep = "s3", "/"

    def __init__(self, **options):
        super().__init__(path=os.environ["SHELF"], fs=LocalFileSystem(auto_mkdir=True))


fsspec.register_implementation("s3", Shelf, clobber=True)
"""


def test_images_and_masks_at_an_address(
    model: Path, whole: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process of the cluster opens the store by itself: a folder that passes for S3."""
    shutil.copytree(whole.images, tmp_path / "shelf/bucket/in")
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf"))
    in_every_process(monkeypatch, tmp_path, SHELF)
    monkeypatch.setitem(_registry, "s3", None)  # put back at the end
    exec(SHELF, {})  # this process too
    out = path_from_text("s3://bucket/out")
    tasks = plan_tasks(["s3://bucket/in"], output_dir=out)
    options = ClusterOptions(address="local", engines=2)
    for expected in ((PICTURES - 2, 2, 0), (0, 2, PICTURES - 2)):
        with Cluster(EngineOptions(model=model), options) as cluster:
            summary = run_job(cluster, tasks, options_of(out), threading.Event())
        assert counts(summary) == expected
    masks = [name for name in files_below(whole.out) if not name.startswith(FOLDER)]
    found = files_below(tmp_path / "shelf/bucket/out")
    assert [name for name in found if not name.startswith(FOLDER)] == masks
    for name in masks:
        assert (tmp_path / "shelf/bucket/out" / name).read_bytes() == (
            whole.out / name
        ).read_bytes(), name


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
