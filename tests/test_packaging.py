"""Wheel and sdist hold the package and nothing else; it starts in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("contract", "training", "engine", "runtime", "export", "bench", "cli")
FILES = (
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "constraints.txt"),
    *("README.md", "README.zh-CN.md", "CHANGELOG.md", "LICENSE"),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: a build leaves folders behind. With what is to stay out of it."""
    copy = tmp_path_factory.mktemp("source") / "unetrt"
    skip = shutil.ignore_patterns("__pycache__", "results")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    for stray in ("tests/test_layout.py", "bench/results/old/report.json", "engine/plan.bin"):
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run([sys.executable, "-m", "pip", *command], cwd=source, check=True)
    (found,) = (source / "dist").glob("*.whl")
    return found


def test_the_sdist_holds_what_a_wheel_is_made_of(source: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (found,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    package = {
        path.relative_to(source).as_posix()
        for folder in FOLDERS
        for path in (source / folder).iterdir()
        if path.suffix in (".py", ".typed")
    }
    made = {name for name in names if name == "PKG-INFO" or name.startswith("unetrt.egg-info/")}
    assert names - made == package | set(FILES)


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
