"""An ONNX file in ONNX Runtime, buffers bound once a run, on the CPU provider."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..contract.cores import granted_threads
from ..contract.errors import UserError
from ..contract.modules import import_module
from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import U8
from .base import HostBuffer
from .host import HostEngine

Providers: TypeAlias = Sequence[str | tuple[str, dict[str, str]]]
"""In the order in which they are asked to take a part of the graph, some with options."""

CPU: Providers = ("CPUExecutionProvider",)

PIXEL_BYTES = {"fp32": 30, "fp16": 30, "bf16": 30, "int8": 18}
"""Of each pixel of network input and channel of the network's width, while it is computed.

Measured at width 16, 1024×1024 and 2048×2048, in fp32 23 to 29, in int8 18.
"""


class OnnxRuntimeEngine(HostEngine):
    """Raises UserError when the file cannot be loaded.

    profile: how the names of the files begin that ONNX Runtime writes its profile to.
    threads: None takes every core, or as many as a container grants.
    """

    backend = "onnxruntime"
    device = "cpu"

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        precision: str,
        device: str = "auto",
        profile: Path | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(spec)
        if device not in ("auto", "cpu"):
            raise UserError(
                f"this engine of the onnxruntime backend does not run on {device}",
                expected="cpu",
                hint="unetrt doctor   says what this machine can run",
            )
        self.precision, self.path = precision, model
        self.pixel_bytes = PIXEL_BYTES[precision] * spec.width
        self._session: Any = session_from_onnx(model, CPU, profile, threads)
        self._size_like = HostBuffer()

    def infer(self, images: U8, masks: U8) -> None:
        try:
            self._run(images, masks)
        except runtime_errors():
            self._give_back()
            raise

    def _run(self, images: U8, masks: U8, options: Any = None) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input("image", images)
        binding.bind_cpu_input("size_like", self._size_like.view(masks.shape[-2:]))
        name = self.spec.result
        binding.bind_output(name, "cpu", 0, np.uint8, masks.shape, masks.ctypes.data)
        self._session.run_with_iobinding(binding, options)

    def _give_back(self) -> None:
        """Where memory was short, the session's arena keeps what it had got until a run ends well.

        The smallest there is will do, or else what runs next.
        """
        side = MIN_SIDE
        image = np.zeros((1, side, side, self.spec.channels), np.uint8)
        with suppress(*runtime_errors()):
            self._run(
                image, np.empty(self.spec.result_shape(1, (side, side)), np.uint8), _shrinking()
            )

    def end_profile(self) -> Path:
        """The file that holds the times of every layer in every run so far."""
        return Path(self._session.end_profiling())


def _shrinking() -> Any:
    """Options of a run after which the arena gives back what that run did not need.

    The key is of onnxruntime_run_options_config_keys.h.
    """
    options = import_module("onnxruntime").RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def session_from_onnx(
    model: Path | bytes,
    providers: Providers,
    profile: Path | None = None,
    threads: int | None = None,
) -> Any:
    """Open a session on the providers named, on no others. Raises UserError for a bad model."""
    runtime = import_module("onnxruntime")
    # The GPU build warns about CUDA libraries that a CPU machine does not have.
    runtime.set_default_logger_severity(3)
    if any("CUDA" in str(provider) for provider in providers) and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA's libraries may be pip packages, which no loader finds
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or granted_threads() or 0
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        source = model if isinstance(model, bytes) else str(model)
        return runtime.InferenceSession(source, options, providers=list(providers))
    except runtime_errors() as error:
        name = "a graph in memory" if isinstance(model, bytes) else model
        raise UserError(f"ONNX Runtime cannot load {name}", seen=error) from error


def runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own errors have no base class but Exception."""
    state = import_module("onnxruntime").capi.onnxruntime_pybind11_state
    names = (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
    )
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names))
