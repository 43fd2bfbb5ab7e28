"""What is sent into a cluster, on a machine that has none of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.test_manifest import edit_manifest
from unetrt.engine.manifest import GATE
from unetrt.export.build import BuildOptions, build_engine
from unetrt.runtime.cluster_work import open_once, ship_model
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
