"""kill -9 at random moments, and the same command again: every mask once, as if nothing was."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import balanced_checkpoint
from tests.runtime.encodings import write_mixed
from tests.runtime.test_predict import files_below
from unetrt.runtime.journal import FOLDER, NAME

PICTURES = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file: ONNX Runtime starts in a fraction of the time that PyTorch takes."""
    from unetrt.cli.main import main
    from unetrt.training.checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder / "model.pth", balanced_checkpoint())
    assert main(["export", str(folder / "model.pth"), "-o", str(folder / "model.onnx")]) == 0
    return folder / "model.onnx"


def command(model: Path, images: Path, out: Path, *more: str) -> list[str]:
    paths = ["-m", str(model), "-i", str(images), "--output-dir", str(out)]
    return [sys.executable, "-m", "unetrt.cli", "predict", *paths, *more]


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def run_until_killed(job_command: list[str], journal: Path, rng: random.Random) -> bool:
    """Kill the job after some more lines of its journal; False when it ended before that."""
    goal = lines_of(journal) + rng.randrange(20)
    job = subprocess.Popen(job_command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while job.poll() is None and lines_of(journal) < goal:
        assert time.monotonic() < end, "the job hangs"
        time.sleep(0.0005)
    time.sleep(rng.random() * 0.01)
    job.kill()
    _, told = job.communicate()
    assert b"Traceback" not in told
    assert job.returncode in (0, -9), told
    return job.returncode != 0


def check_what_is_there(out: Path, undisturbed: Path) -> None:
    """After a kill: no mask is half a mask, and what the journal calls done is there."""
    for name in files_below(out):
        if not Path(name).name.startswith(".") and not name.startswith(FOLDER):
            assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    journal = out / FOLDER / NAME
    text = journal.read_text() if journal.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
        output = json.loads(line).get("output")  # none of a line of the plan
        assert output is None or (out / output).is_file()


def check_whole(out: Path, undisturbed: Path, failed: int = 0) -> None:
    assert files_below(out) == files_below(undisturbed), "none missing, nothing left behind"
    for name in files_below(undisturbed):
        if name != f"{FOLDER}/{NAME}":
            assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    lines = [json.loads(line) for line in (out / FOLDER / NAME).read_text().splitlines()[1:]]
    done = Counter(entry["input"] for entry in lines if entry.get("status") == "done")
    assert set(done.values()) == {1}, "none twice"
    assert len(done) == PICTURES - failed


def kill_and_resume(model: Path, tmp_path: Path, kills: int, *more: str) -> int:
    """Kill jobs until there were `kills`; each is resumed until it is done, and compared."""
    images = tmp_path / "in"
    write_mixed(images, PICTURES)
    whole = tmp_path / "whole"
    subprocess.run(command(model, images, whole, *more), check=True, capture_output=True)
    rng, killed, job = random.Random(kills), 0, 0
    while killed < kills:
        out = tmp_path / f"out{job}"
        job += 1
        while run_until_killed(command(model, images, out, *more), out / FOLDER / NAME, rng):
            killed += 1
            check_what_is_there(out, whole)
        check_whole(out, whole)
    return job


def test_three_kills(model: Path, tmp_path: Path) -> None:
    kill_and_resume(model, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "fmt"), [(30, "auto"), (10, "npy"), (10, "rle")])
def test_fifty_kills(kills: int, fmt: str, model: Path, tmp_path: Path) -> None:
    kill_and_resume(model, tmp_path, kills, "--format", fmt)
