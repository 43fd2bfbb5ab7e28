"""What is sent into a cluster, on a machine that has none of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.engine.test_manifest import edit_manifest
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import GATE
from unetrt.export.build import BuildOptions, build_engine
from unetrt.runtime.cluster_work import INFER_BATCH, open_once, rows_for, ship_model
from unetrt.runtime.plan import Task
from unetrt.runtime.work import PredictOptions
from unetrt.runtime.worker import EngineOptions


@pytest.fixture
def model(exported: Callable[..., Path]) -> Path:
    return exported()


def test_a_link_to_a_model_brings_what_it_leads_to(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "current.onnx"
    link.symlink_to(model)
    sent = ship_model(link)
    link.unlink()
    opened, warnings = open_once(sent, EngineOptions(model=link), "cpu", 1)
    assert opened.spec.classes
    assert not warnings


def test_the_working_folder_is_sent_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steel").mkdir()
    monkeypatch.chdir(tmp_path / "steel")
    assert ship_model(Path()).name == "steel"


def test_a_warning_of_an_engine_reaches_who_runs_the_job(model: Path, tmp_path: Path) -> None:
    engine = tmp_path / "steel engine"
    build_engine(model, engine, BuildOptions(backend="onnxruntime", precision="fp32"))
    edit_manifest(engine, lambda raw: raw["gate"].update(verdict="failed"))
    _, warnings = open_once(ship_model(engine), EngineOptions(model=engine), "cpu", 1)
    assert warnings == [
        f"{engine} failed its gate and was published by --force: see {engine / GATE}"
    ]


@pytest.mark.parametrize(
    ("size", "rows"),
    [((40, 32), 128), ((1280, 1918), 13), ((3840, 5754), 1)],
    ids=["small", "a camera's", "large"],
)
def test_images_are_given_to_an_engine_by_their_bytes(
    size: tuple[int, int], rows: int, tmp_path: Path
) -> None:
    """The largest of those that are looked at counts, broken ones do not."""
    sources = [tmp_path / f"{index}.bmp" for index in range(3)]
    Image.new("RGB", (16, 16)).save(sources[0])
    sources[1].write_bytes(b"broken")
    Image.new("RGB", size[::-1]).save(sources[2])
    spec = ModelSpec(channels=3, classes=2, width=1, scale=1.0)
    tasks = [Task(source, None) for source in sources]
    assert rows_for(tasks, spec, PredictOptions()) == rows


def test_none_is_looked_at_where_there_are_no_images() -> None:
    spec = ModelSpec(channels=3, classes=2, width=1)
    assert rows_for([], spec, PredictOptions()) == INFER_BATCH
