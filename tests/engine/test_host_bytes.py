"""The estimate of the host's memory, by which images are cut, against what a run takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
import numpy as np
from tests.engine.test_slots import engine_of_kind

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

kind, checkpoint, exported = sys.argv[1:]
size, masks = (768, 768), (1536, 1536)
with engine_of_kind(kind, Path(checkpoint), Path(exported)) as engine:
    engine.run(np.zeros((64, 64, 1), np.uint8), (64, 64))
    before = status("VmRSS")
    engine.run(np.zeros((*size, 1), np.uint8), masks)
    print(status("VmHWM") - before, engine.host_bytes(size, masks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read as Linux tells")
@pytest.mark.parametrize("kind", ["torch", "onnxruntime", "openvino-fp32"])
def test_logits_of_many_classes_are_not_forgotten(
    kind: str, checkpoint_file: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    """At twice the input's size they are most of it, and hundreds of MiB."""
    net = {"classes": 20, "width": 4}
    arguments = [kind, str(checkpoint_file(**net)), str(exported(**net))]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken, expected = map(int, done.stdout.split())
    assert expected / 3 < taken < expected * 1.2
