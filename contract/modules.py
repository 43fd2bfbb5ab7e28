"""Optional packages: imported where they are used, with the install line when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .errors import UserError

QUIET = {"onnxruntime": "ORT_DISABLE_TELEMETRY"}
"""Packages that report to their makers, and the variable that keeps them from it."""

REPORTERS = {"openvino": "openvino_telemetry"}
"""Packages that report by another, have no variable against it, and do without that other."""


def pip_install(what: str) -> str:
    """The line that brings a package, or an extra of ours, in the version that was tested.

    An extra is named by `unetrt[…]`: of an installed clone, editable or not, that changes nothing.
    """
    return f"pip install -c constraints.txt {what}   in the clone of unetrt"


INSTALL = {
    "torch": pip_install("torch"),
    "google.protobuf.message": pip_install("protobuf"),
    "google.protobuf.text_format": pip_install("protobuf"),
    "grpc": pip_install("'unetrt[triton]'"),
    "onnx": pip_install("onnx"),
    "onnxruntime": pip_install("onnxruntime-gpu"),
    "openvino": pip_install("openvino"),
    "pycuda.driver": pip_install("'unetrt[trt]'"),
    "upath": pip_install("universal-pathlib"),
    "tifffile": pip_install("'unetrt[bands]'"),
    "imagecodecs": pip_install("'unetrt[bands]'"),
    "s3fs": pip_install("s3fs"),
    "gcsfs": pip_install("gcsfs"),
    "adlfs": pip_install("adlfs"),
    "wandb": pip_install("'unetrt[wandb]'"),
    "tensorrt": pip_install("'unetrt[trt]'"),
    "pynvml": pip_install("nvidia-ml-py"),
    "ray": pip_install("'unetrt[ray]'"),
    "ray.data": pip_install("'unetrt[ray]'"),
    "tensorrt_rtx": pip_install("'unetrt[rtx]'"),
    "tritonclient.grpc.model_config_pb2": pip_install("'unetrt[triton]'"),
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def import_module(name: str) -> ModuleType:
    """Import a package of INSTALL. UserError with the line that brings it, whatever it raises.

    Broken packages raise RuntimeError and OSError too. Reports are off, unless the user has set
    the variable himself.
    """
    package = name.partition(".")[0]
    if variable := QUIET.get(package):
        os.environ.setdefault(variable, "1")
    try:
        with _without(REPORTERS.get(package)):
            return importlib.import_module(name)
    except Exception as error:
        seen = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the package {name} is needed here", seen=seen, hint=INSTALL[name]
        ) from error


@contextmanager
def _without(name: str | None) -> Iterator[None]:
    """Imports of a module that nobody has imported yet fail, as where it is not installed."""
    if name is None or name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what importlib documents for that
    try:
        yield
    finally:
        del sys.modules[name]
