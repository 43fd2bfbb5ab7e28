"""The wheel holds the package and nothing else, and starts in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("contract", "training", "engine", "runtime", "export", "bench", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source") / "unetrt"
    ignored = shutil.ignore_patterns(".*", "demo", "build", "*.egg-info", "__pycache__", "typings")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run([sys.executable, "-m", "pip", *command], cwd=source, check=True)
    (found,) = (source / "dist").iterdir()
    return found


def test_the_wheel_holds_the_seven_folders_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if ".dist-info/" not in name}
    sources = [p for f in FOLDERS for p in (ROOT / f).iterdir() if p.suffix in (".py", ".typed")]
    assert found == {f"unetrt/{p.relative_to(ROOT).as_posix()}" for p in sources}
    metadata = {name.split("/", 1)[1] for name in names if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= metadata


def test_it_starts_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    pip = [tmp_path / "bin" / "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    unetrt = tmp_path / "bin" / "unetrt"
    for arguments in (["--version"], ["--help"], ["predict", "--help"]):
        done = subprocess.run(
            [unetrt, *arguments], capture_output=True, text=True, env={}, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "unetrt" in done.stdout
