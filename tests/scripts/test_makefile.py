"""What the Makefile does with the Python that it is given."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and what its environment is made of."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def python(path: Path, minor: int) -> Path:
    """A program that says it is Python 3.MINOR, and makes no environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = int(minor < 11)
    path.write_text(f'#!/bin/sh\ncase "$2" in *print*) echo 3.{minor} ;; *) exit {old} ;; esac\n')
    path.chmod(0o755)
    return path


def make(clone: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    found = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {}
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=clone,
        env={**outside, **found},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["python3.10", "nonesuch"])
def test_an_old_python_is_refused_by_name_and_leaves_nothing(name: str, clone: Path) -> None:
    python(clone / "bin" / "python3.10", 10)
    done = make(clone, "demo", f"PYTHON={name}", path=clone / "bin")
    assert done.returncode != 0
    assert f"PYTHON={name} is not a Python that unetrt runs on" in done.stderr
    assert "Expected: 3.11 or newer" in done.stderr
    assert ("Seen: 3.10" in done.stderr) == (name == "python3.10")
    assert "Hint: make demo PYTHON=python3.12" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(("present", "steps"), [(11, "-m venv --clear .venv"), (12, "")])
def test_another_python_gets_an_environment_of_its_own(
    present: int, steps: str, clone: Path
) -> None:
    python(clone / ".venv" / "bin" / "python", present)
    (clone / ".venv" / ".base").touch()
    wanted = python(clone / "python3.12", 12)
    told = make(clone, "-n", "demo", f"PYTHON={wanted}").stdout
    assert steps in told
    assert ("-m venv" in told) == bool(steps)


def test_without_a_name_the_environment_that_is_there_is_taken(clone: Path) -> None:
    python(clone / ".venv" / "bin" / "python", 12)
    (clone / ".venv" / ".base").touch()
    python(clone / "bin" / "python3", 10)
    assert "-m venv" not in make(clone, "-n", "demo", path=clone / "bin").stdout
    os.utime(clone / "constraints.txt", (2e9, 2e9))
    told = make(clone, "-n", "demo", path=clone / "bin").stdout
    assert "-m venv" not in told, "new pins go into what is there"
    assert "pip install" in told
    assert make(clone, "-n", "gpu", path=clone / "bin").stdout.startswith("PYTHON= scripts/gpu.sh")
