"""One of two processes runs out of memory in a step: both do it again, with less of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("short_worker.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TIMEOUT = 120


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What one process alone found, and each of two."""
    folder = tmp_path_factory.mktemp("short")
    runpy.run_path(str(WORKER))["main"](str(folder / "one"))
    command = [sys.executable, *TORCHRUN, str(WORKER), str(folder / "two")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, first, last = (
        torch.load(folder / name, weights_only=True) for name in ("one.0", "two.0", "two.1")
    )
    return alone["roomy"], first, last


def test_a_process_short_of_memory_anywhere_in_a_step_keeps_none_waiting(found: Any) -> None:
    alone, first, last = found
    cases = [name for name in first if name != "twice"]
    assert len(cases) == 7
    for case in cases:
        one, other = first[case], last[case]
        assert one["recompute"] == other["recompute"] == (case != "roomy"), case
        assert one["losses"] == other["losses"] == pytest.approx(alone["losses"], abs=1e-9), case
        for name, tensor in alone["state"].items():
            assert torch.equal(one["state"][name], other["state"][name]), (case, name)
            assert torch.allclose(one["state"][name], tensor, atol=1e-8), (case, name)


def test_a_batch_that_fits_in_no_way_stops_all_of_them_before_the_step(found: Any) -> None:
    _, first, last = found
    one, other = first["twice"], last["twice"]
    assert len(one["losses"]) == len(other["losses"]) == 1
    assert "Tried to allocate 9 GiB" in one["error"]
    assert "another process is short of it" in other["error"]
    assert "--batch-size" in other["error"]
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, other["state"][name]), name
    assert one["state"]["inc.double_conv.1.num_batches_tracked"] == 1
