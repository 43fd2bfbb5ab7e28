"""Engines of a few threads each, as those of several processes: no core has them all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PINNED_THREADS = """
import os, sys
from pathlib import Path
import numpy as np
from unetrt.engine.openvino_backend import OpenVinoEngine
from unetrt.engine.onnxfile import metadata_from_onnx

path, whole, pinned = Path(sys.argv[1]), os.sched_getaffinity(0), set()
spec = metadata_from_onnx(path)[0]
with OpenVinoEngine(path, spec, "fp32", threads=1) as engine:
    slot = engine.slot()
    for _ in range(3):  # a thread is pinned while it computes
        slot.reserve(8, (512, 512))
        slot.submit(8, (512, 512))
        for _ in range(20):
            for thread in os.listdir("/proc/self/task"):
                if os.sched_getaffinity(int(thread)) != whole:
                    pinned.add(thread)
        slot.masks()
print(len(pinned))
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells of threads")
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core: there is no other to run on")
def test_the_threads_of_one_process_of_several_are_not_pinned(
    exported: Callable[..., Path],
) -> None:
    """Each of two pinned its own to the first core: `--devices cpu:2` went at half the speed."""
    command = [sys.executable, "-c", PINNED_THREADS, str(exported())]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "0\n"


CLOSED_IN_TURN = """
import gc, os, signal, sys, time
from pathlib import Path
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.openvino_backend import OpenVinoEngine

path = Path(sys.argv[1])
engines = [OpenVinoEngine(path, metadata_from_onnx(path)[0], "fp32") for _ in range(2)]
while engines:
    engines.pop(0).close()
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_two_engines_is_no_crash(exported: Callable[..., Path]) -> None:
    """Each Core has a stack for signals: of two that ended in turn one was left, without memory."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_IN_TURN, str(exported())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
