"""Exported graphs, one a session for each kind, and an engine directory to open and to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unetrt.export.build import BuildOptions, build_engine


@pytest.fixture(scope="session")
def built_directory(
    tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path]
) -> Path:
    """An engine directory for ONNX Runtime; copy it before changing it."""
    path = tmp_path_factory.mktemp("built") / "engine"
    build_engine(exported(), path, BuildOptions(backend="onnxruntime", precision="fp32"))
    return path


@pytest.fixture
def directory(built_directory: Path, tmp_path: Path) -> Path:
    """A copy of the engine directory, to be damaged."""
    return shutil.copytree(built_directory, tmp_path / "engine")
