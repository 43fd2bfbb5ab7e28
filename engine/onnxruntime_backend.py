"""An ONNX file in ONNX Runtime, buffers bound once a run, on the CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UserError
from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from ..contract.types import U8
from .base import HostBuffer
from .host import HostEngine


class OnnxRuntimeEngine(HostEngine):
    """Raises UserError when the file cannot be loaded."""

    backend = "onnxruntime"
    device = "cpu"

    def __init__(self, model: Path, spec: ModelSpec, precision: str, device: str = "auto") -> None:
        super().__init__(spec)
        if device not in ("auto", "cpu"):
            raise UserError(
                f"the onnxruntime backend does not run on {device} in this version",
                expected="cpu",
                hint="unetrt doctor   says what this machine can run",
            )
        self.precision = precision
        self._session = _session_from_onnx(model)
        self._size_like = HostBuffer()

    def infer(self, images: U8, masks: U8) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input("image", images)
        binding.bind_cpu_input("size_like", self._size_like.view(masks.shape[1:]))
        binding.bind_output("mask", "cpu", 0, np.uint8, masks.shape, masks.ctypes.data)
        self._session.run_with_iobinding(binding)


def _session_from_onnx(model: Path) -> Any:
    runtime = import_module("onnxruntime")
    # The GPU build warns about CUDA libraries that a CPU machine does not have.
    runtime.set_default_logger_severity(3)
    try:
        return runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except _errors() as error:
        raise UserError(f"ONNX Runtime cannot load {model}", seen=error) from error


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own errors have no base class but Exception."""
    state = import_module("onnxruntime").capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names))
