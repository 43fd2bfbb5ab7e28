"""What is sent into a cluster, on a machine that has none of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
    assert open_once(sent, EngineOptions(model=link), "cpu", 1).spec.classes


def test_the_working_folder_is_sent_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "steel").mkdir()
    monkeypatch.chdir(tmp_path / "steel")
    assert ship_model(Path()).name == "steel"
