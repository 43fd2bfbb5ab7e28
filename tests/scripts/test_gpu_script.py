"""scripts/gpu.sh with a made-up GPU and interpreter: what it does again, and its exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu.sh"
PYTHON = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in *bench*512x512*) exit "${STATUS:-0}" ;; esac
"""

ITS_VARIABLES = {"WORK", "ARCHIVE", "STAGE_SECONDS", "SECONDS_LEFT", "DATA", "WHEELS", "EPOCHS"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A clone as the script sees it, with the network that the bench needs."""
    programs = {"bin/nvidia-smi": "#!/bin/sh\necho NVIDIA X\n", "bin/python": PYTHON}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "build/gpu/drawn").mkdir(parents=True)
    (tmp_path / "build/gpu/drawn/done").touch()
    (tmp_path / "build/gpu/640x959/imgs").mkdir(parents=True)
    return tmp_path


def run_stage(house: Path, stage: str, **variables: str) -> tuple[int, list[str]]:
    """Its exit status, and what the interpreter was told."""
    (house / "calls.txt").unlink(missing_ok=True)
    path = f"{house / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if name not in ITS_VARIABLES}
    environment = {**own, "PATH": path, "PYTHON": str(house / "bin/python"), **variables}
    command = ["bash", str(house / "scripts/gpu.sh"), stage]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    calls = house / "calls.txt"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def benches(calls: list[str]) -> list[str]:
    return [
        call.partition("--report ")[2].rpartition("/")[2] for call in calls if "--report" in call
    ]


def test_a_bench_that_was_cut_is_run_again_and_one_that_is_whole_is_not(house: Path) -> None:
    results = house / "bench/results/nvidia-x"
    for size, cut in (("640x959", "false"), ("200x200", "true")):
        (results / size).mkdir(parents=True)
        (results / size / "bench_x.json").write_text(f'{{\n  "interrupted": {cut}\n}}\n')
    status, calls = run_stage(house, "bench")
    assert benches(calls) == ["100x100", "200x200", "512x512"]
    assert status == 0


def test_a_step_that_fails_is_the_scripts_failure_and_the_others_run(house: Path) -> None:
    status, calls = run_stage(house, "bench", STATUS="3")
    assert benches(calls) == ["100x100", "200x200", "512x512", "640x959"]
    assert status == 1
    assert run_stage(house, "bench", SECONDS_LEFT="1")[0] == 1, "what was not done is not there"


def test_what_is_missing_is_no_failure(house: Path) -> None:
    status, calls = run_stage(house, "train", DATA="nowhere")
    assert status == 0
    assert not any("train" in call for call in calls)
