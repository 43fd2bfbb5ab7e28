"""An ONNX file in ONNX Runtime's CUDA provider, on the buffers and the stream of a CUDA slot.

`--device cuda` asks for it, nothing chooses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import DeviceMemoryError, UserError, first_line
from ..contract.log import log
from ..contract.memory import tells_of_memory
from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from .base import Engine, Memory, Slot
from .cuda import BatchShape, CudaSlot, Kernel
from .cuda_buffers import PinnedMemory
from .cuda_device import CudaDevice, cuda_index
from .onnx_bias import graph_with_biases_apart
from .onnxruntime_backend import Providers, runtime_errors, session_from_onnx
from .tensorrt_backend import cuda_devices

CUDA = "CUDAExecutionProvider"


@dataclass
class FusedGraph:
    """A file's graph for convolutions that cuDNN fuses with their biases, one for all slots.

    data: None where it fuses none: then the file itself runs.
    """

    data: bytes | None

    def give_up(self, error: Exception) -> None:
        """Say so, once."""
        if self.data is not None:
            log.warning("cuDNN fuses no biases here, which is slower: %s", first_line(error))
        self.data = None


class IdleSessions:
    """Sessions of streams whose slots are closed: to open one takes as long as many batches."""

    def __init__(self) -> None:
        self._of_stream: dict[tuple[int, bool], Any] = {}
        self._kept = True

    def take(self, stream: int, fused: bool) -> Any:
        """One that was made for the stream, with biases fused or not; or None."""
        return self._of_stream.pop((stream, fused), None)

    def give(self, stream: int, fused: bool, session: Any) -> None:
        """Take one back that nothing runs in."""
        if self._kept:
            self._of_stream[stream, fused] = session

    def drop_fused(self) -> None:
        """Where cuDNN fuses no biases."""
        for key in [key for key in self._of_stream if key[1]]:
            del self._of_stream[key]

    def keep_none(self) -> None:
        """Where memory is short: each holds what its largest batch took."""
        self._kept = False
        self._of_stream.clear()


class OnnxRuntimeCudaEngine(Engine):
    """Raises UserError where there is no GPU, or ONNX Runtime cannot use it.

    fused: biases as part of their convolutions; for what is judged on the device, as a directory's
    golden masks are.
    """

    backend = "onnxruntime"

    def __init__(
        self, model: Path, spec: ModelSpec, precision: str, device: str, fused: bool = False
    ) -> None:
        super().__init__(spec)
        self.precision, self.path = precision, model
        if not cuda_devices():
            raise UserError(
                f"ONNX Runtime does not run on {device} here",
                seen="0 CUDA devices",
                hint="unetrt doctor   says what this machine can run; or --device cpu",
            )
        self._graph = FusedGraph(graph_with_biases_apart(model) if fused else None)
        self._sessions = IdleSessions()
        self._cuda: CudaDevice | None = CudaDevice(cuda_index(device))
        self.device = self._cuda.name

    def slot(self) -> Slot:
        if self._cuda is None:
            raise RuntimeError("the engine is closed")
        kernel = SessionKernel(
            self.path,
            self.spec.result,
            self._cuda.index,
            graph=self._graph,
            sessions=self._sessions,
        )
        return CudaSlot(self._cuda, self.spec.channels, kernel, self.spec.planes, self.timed)

    def memory(self) -> Memory:
        if self._cuda is None:
            raise RuntimeError("the engine is closed")
        return PinnedMemory(self._cuda)

    def close(self) -> None:
        if self._cuda is not None:
            self._sessions.keep_none()
            self._cuda.close()
            self._cuda = None


def tells_of_cudnn(error: Exception) -> bool:
    """Whether cuDNN has no way to compute a layer; neither memory nor the image is to blame."""
    return "cudnn" in str(error).lower() and not tells_of_memory(error)


def cuda_providers(index: int, stream: int, fused: bool = False) -> Providers:
    """Compute on the slot's stream; what has no CUDA kernel, the arithmetic of shapes, on the CPU.

    fused: biases in cuDNN's convolutions, which else are a pass of their own over all features.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    options = {
        "device_id": str(index),
        "user_compute_stream": str(stream),
        "use_tf32": "0",  # an fp32 graph means fp32
        "arena_extend_strategy": "kSameAsRequested",  # not the next power of two
        # The default tries every algorithm for each new shape, in memory that the arena keeps.
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "1",  # as tensor cores take it, with no changes of layout
        "fuse_conv_bias": str(int(fused)),
    }
    return ((CUDA, options), "CPUExecutionProvider")


class SessionKernel(Kernel):
    """A session of its own: ONNX Runtime takes the stream when a session is made.

    Raises UserError where the CUDA provider does not start; ONNX Runtime itself would go on with
    the CPU.
    """

    eager = "ONNX Runtime takes memory and computes shapes on the CPU while the network runs"

    def __init__(
        self,
        model: Path,
        result: str,
        index: int,
        memory: str = "cuda",
        graph: FusedGraph | None = None,
        sessions: IdleSessions | None = None,
    ) -> None:
        """result: the output's name. memory: where the addresses that come lie, cuda or cpu.

        graph: of `model`; while it has data, that runs. sessions: of the model, for the next slot
        on the same stream.
        """
        self._model, self._result, self._index, self._memory = model, result, index, memory
        self._graph = graph or FusedGraph(None)
        self._sessions = sessions or IdleSessions()
        self._stream = 0
        self.name = f"ONNX file {model}"
        self._session: Any = None
        self._binding: Any = None
        self._bound: tuple[BatchShape, int, int, int] | None = None
        self._fused = self._failed = False

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        where = f"{self.name} on {shape.images}, stream {stream:#x}"
        if self._session is None:
            self._open(stream, where)
        try:
            self._run(shape, image, size_like, mask)
        except runtime_errors() as error:
            if self._fused and tells_of_cudnn(error):
                self._graph.give_up(error)
                self._sessions.drop_fused()
                self._drop()  # before the other is opened: two would need twice the memory
                self.enqueue(shape, image, size_like, mask, stream)
                return
            self._failed, kind = True, UserError
            if tells_of_memory(error):
                kind = DeviceMemoryError
                self._sessions.keep_none()
            raise kind(f"ONNX Runtime failed to run {where}", seen=error) from error

    def _run(self, shape: BatchShape, image: int, size_like: int, mask: int) -> None:
        if (shape, image, size_like, mask) != self._bound:
            self._bind(shape, image, size_like, mask)
        self._session.run_with_iobinding(self._binding, self._run_options)

    def _open(self, stream: int, where: str) -> None:
        graph = self._graph.data
        self._stream, self._fused = stream, graph is not None
        try:
            session = self._sessions.take(stream, self._fused) or self._made(stream, graph)
        except UserError as error:
            if not tells_of_memory(str(error.seen)):
                raise
            self._sessions.keep_none()
            raise DeviceMemoryError(f"no memory to open {where}", seen=error.seen) from error
        self._session, self._failed = session, False
        self._run_options = import_module("onnxruntime").RunOptions()
        # The slot waits for its own event, once the copy out is queued too.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _made(self, stream: int, graph: bytes | None) -> Any:
        session = session_from_onnx(graph or self._model, self._providers(stream))
        if self._memory == "cuda" and CUDA not in session.get_providers():
            raise UserError(
                "ONNX Runtime cannot use CUDA here",
                seen=", ".join(session.get_providers()),
                expected=f"{CUDA}: the GPU build of ONNX Runtime, CUDA 13 and cuDNN 9",
                hint="--device cpu",
            )
        runtime = import_module("onnxruntime")
        if self._memory == "cuda":
            # cuDNN's every refusal of a way to compute a layer is an error in the log; what is one
            # to us is raised.
            runtime.set_default_logger_severity(4)
        return session

    def _providers(self, stream: int) -> Providers:
        cuda = cuda_providers(self._index, stream, self._fused)
        return cuda if self._memory == "cuda" else cuda[1:]

    def _bind(self, shape: BatchShape, image: int, size_like: int, mask: int) -> None:
        binding = self._session.io_binding()
        place = (self._memory, self._index, np.uint8)
        binding.bind_input("image", *place, shape.images, image)
        binding.bind_input("size_like", *place, shape.mask_size, size_like)
        binding.bind_output(self._result, *place, shape.masks, mask)
        self._binding, self._bound = binding, (shape, image, size_like, mask)

    def _drop(self) -> None:
        """The session: its memory is free, or it goes to the next slot."""
        self._binding = self._bound = self._session = None

    def make_room(self) -> None:
        """Sessions of slots that are closed hold what their largest batches took."""
        self._sessions.keep_none()

    def close(self) -> None:
        current = self._fused == (self._graph.data is not None)
        if self._session is not None and current and not self._failed:
            self._sessions.give(self._stream, self._fused, self._session)
        self._drop()
