"""The CUDA slot on real pycuda without a GPU: a driver that runs nothing before it must."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unetrt.contract.spec import SpecOverrides
from unetrt.export.onnx_export import export_checkpoint

HERE = Path(__file__).resolve().parent


def test_the_slot_on_the_lazy_host_driver(
    checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    """One process for all cases: a process has one libcuda."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed: `make pycuda` builds it where the CUDA toolkit is")
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler to build the lazy host driver with")
    library = tmp_path / "libcuda.so.1"
    flags = ["-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", library, HERE / "lazy_driver.c"], check=True)
    model = tmp_path / "model.onnx"
    export_checkpoint(checkpoint_file(), model, "fp32", SpecOverrides())
    files = sorted(HERE.glob("lazy_*.py"))
    cases = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        cases,
        cwd=HERE.parent.parent,
        env={**os.environ, "LAZY_DRIVER": str(library), "LAZY_MODEL": str(model)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "52 passed" in done.stdout, done.stdout
