"""What a killed job was writing, where no journal keeps other jobs away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import steel
from tests.runtime.conftest import ThresholdEngine, write_picture
from unetrt.contract.files import temporary_key
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks

KILLED = """
import os, signal, sys
from pathlib import Path
from unetrt.contract.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


def run_job(tasks: list[Task]) -> None:
    with ThresholdEngine() as engine:
        assert predict_masks(engine, tasks, PredictOptions()).done == len(tasks)


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.fixture(params=["named", "beside the images"])
def tasks(request: pytest.FixtureRequest, tmp_path: Path) -> list[Task]:
    """Two pictures, their masks named with -o or put beside them."""
    for name in ("a", "b"):
        write_picture(tmp_path / "in" / f"{name}.png", steel(0, 32, 32))
    named = [tmp_path / "masks" / f"{name}.png" for name in ("a", "b")]
    (tmp_path / "masks").mkdir()
    outputs = named if request.param == "named" else []
    return plan_tasks([str(tmp_path / "in")], outputs=outputs)


def output_of(task: Task) -> Path:
    assert task.output is not None
    return task.output


@pytest.fixture
def writer(tasks: list[Task]) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing the first mask."""
    arguments = [sys.executable, "-c", KILLED, str(output_of(tasks[0])), "wait"]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


def test_what_a_killed_process_left_goes(tasks: list[Task], tmp_path: Path) -> None:
    for task in tasks:
        subprocess.run([sys.executable, "-c", KILLED, str(output_of(task)), "die"], check=False)
    foreign = output_of(tasks[0]).with_name(f".{temporary_key('c.png')}.1-00ff00ff.tmp")
    foreign.write_text("half")
    assert len(temporaries(tmp_path)) == 3
    run_job(tasks)
    assert temporaries(tmp_path) == [foreign], "no mask of this job"


def test_what_another_process_is_writing_stays(
    tasks: list[Task], tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    [before] = temporaries(tmp_path)
    run_job(tasks)
    assert temporaries(tmp_path) == [before]
    writer.communicate("")
    assert writer.returncode == 0, "it could put its file in place"
    assert not temporaries(tmp_path)


def test_what_a_process_of_our_own_number_left_goes(tasks: list[Task], tmp_path: Path) -> None:
    """In a container each job may have the number 1; a thread of ours may be writing, too."""
    output = output_of(tasks[0])
    key = f".{temporary_key(output.name)}.{os.getpid()}"
    old, new = (output.with_name(f"{key}-0000000{place}.tmp") for place in range(2))
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (1, 1))
    run_job(tasks)
    assert temporaries(tmp_path) == [new]
