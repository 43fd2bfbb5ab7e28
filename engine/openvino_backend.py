"""An ONNX file in OpenVINO: the fastest on x86 CPUs, bf16 where the processor has it."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..contract.cores import granted_threads
from ..contract.errors import DeviceMemoryError, UserError
from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from .base import Engine, HostBuffer, Slot, memory_errors
from .openvino_split import split_concatenations
from .openvino_turned import better_turned, turn
from .probe import cpu_flags, memory_of

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f32", "int8": "bf16"}
"""Our precision → OpenVINO's hint. OpenVINO would take bf16 unasked, so it is always set."""

MAX_SHAPES = 16
"""Compiled shapes kept. A static shape ran 1.2 times as fast as a dynamic one, and compiles in
0.1 s; masks were equal bit for bit."""

SHARE = 4
"""Shapes that are kept may hold this part of the memory, 1/4 of it, beside the one that runs."""

PIXEL_BYTES = {"fp32": 15, "bf16": 9, "int8": 6}
"""Of each pixel of network input and channel of the network's width, while it is computed.

Measured at widths of 16 and 64, 1024×1024 and 2048×2048: 12.7 to 14.5, 7.5 to 8.8, 4.9 to 5.7. Each
stream that a shape has run on keeps as much.
"""

QUEUED = 4
"""Quick batches for each stream: who hands them out waits for a core that the streams keep busy.

Pictures of 200×200 at scale 0.5 and width 16 in bf16 on two cores with AMX, files to files: 515
images/s with 3 slots, 592 with 6, 608 with 8, 605 with 12.
"""

MOST_BATCH = 8
BATCH_NUMBERS = 2**21
"""Pixels of network input, times the network's width, in a batch of small images.

Images/s files to files on two cores with AMX, bf16, by the batch: 100×100 at width 16 563 (1), 619,
664 (4), 698 (8), in int8 603, –, 746, 758; at width 64 103, 108, 112, 105; 200×200 at width 16 271
(1), 280, 271, 241; at width 64 36 (1), 34, 34.
"""

Shape = tuple[int, int, int, int, int]
"""(batch, h, w, H, W)"""


def openvino_core() -> Any:
    """OpenVINO's Core; raises UserError where OpenVINO does not start."""
    return _core_of(import_module("openvino"))


@cache
def _core_of(openvino: Any) -> Any:
    """One for the process, which is never given back.

    Each sets a stack for signals and unsets it at its end. Where two did not end in the order in
    which they had begun, memory that was gone stayed that stack, and Ctrl-C ended the process.
    """
    return openvino.Core()


class CompiledShape:
    """A compiled model and its requests that no slot holds.

    To make a request OpenVINO waits for what runs on the first stream: as many as there are slots
    are made before the first batch, and each is used again.
    """

    def __init__(self, model: Any, requests: int) -> None:
        self._model = model
        self._idle = [model.create_infer_request() for _ in range(requests)]

    def take(self) -> Any:
        """A request that does not run; from any thread."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._model.create_infer_request()

    def give_back(self, request: Any) -> None:
        """One whose masks have come, or that has never run."""
        self._idle.append(request)


class OpenVinoEngine(Engine):
    """One compiled model a shape, the last MAX_SHAPES kept; raises UserError on a bad file.

    profile: every layer is timed, and slots have `layer_times`. threads: None takes every core, or
    as many as a container grants.
    """

    backend = "openvino"
    device = "cpu"
    any_batch = any_memory = True

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        precision: str,
        device: str = "auto",
        profile: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__(spec)
        if device not in ("auto", "cpu"):
            raise UserError(f"the openvino backend does not run on {device}", expected="cpu")
        # Weights of an fp16 file are multiplied in fp32 on a CPU.
        self.precision, self.path = "fp32" if precision == "fp16" else precision, model
        self._core = openvino_core()
        self.tensor = import_module("openvino").Tensor
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        _check_precision(able, precision)
        self._model = _read_model(self._core, model)
        split_concatenations(self._model)
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision_hint(able, precision),
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERF_COUNT": "YES" if profile else "NO",
        }
        threads = threads or granted_threads()
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
            # The cores are shared with other processes, and each would pin its own to the first.
            self._config["ENABLE_CPU_PINNING"] = False
        self._compiled: OrderedDict[Shape, CompiledShape] = OrderedDict()
        self._lock = threading.Lock()
        # One more than the streams keeps each of them fed while a mask is handed over.
        self.streams = self._streams()
        self.slots = self.streams + 1
        self.spare_slots = QUEUED * self.streams - self.slots
        self.pixel_bytes = PIXEL_BYTES[self.precision] * spec.width
        self._memory = memory_of(threads) // SHARE
        self._turns = self.precision != "fp32" and "amx_tile" in cpu_flags()
        self._turned: Any = None

    @property
    def most_batch(self) -> int:
        return MOST_BATCH

    def batch_for(self, input_size: Size) -> int:
        """A power of two, so that few shapes are compiled."""
        fitting = BATCH_NUMBERS // (math.prod(input_size) * self.spec.width)
        return 1 << (max(1, min(fitting, MOST_BATCH)).bit_length() - 1)

    def _streams(self) -> int:
        compiled = self._core.compile_model(self._model, "CPU", self._config)
        return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def compiled(self, shape: Shape) -> CompiledShape:
        """That of a shape, compiled now if it is new."""
        with self._lock:
            if shape not in self._compiled:
                self._compiled[shape] = self._compile(shape)
                self._forget(shape)
            self._compiled.move_to_end(shape)
            return self._compiled[shape]

    def _forget(self, new: Shape) -> None:
        """Shapes that have not run for longest, where there are too many or they hold too much."""
        held = sum(map(self._held_by, self._compiled)) - self._held_by(new)
        while len(self._compiled) > MAX_SHAPES or (held > self._memory and len(self._compiled) > 1):
            oldest, _ = self._compiled.popitem(last=False)
            held -= self._held_by(oldest)

    def _held_by(self, shape: Shape) -> int:
        batch, h, w, height, width = shape
        return batch * self.host_bytes((h, w), (height, width)) * self.streams

    def _compile(self, shape: Shape) -> CompiledShape:
        batch, h, w, height, width = shape
        turned = self._turns and better_turned((h, w))
        model = (self._turned_model() if turned else self._model).clone()
        channels = self.spec.channels
        model.reshape({"image": [batch, h, w, channels], "size_like": [height, width]})
        compiled = self._core.compile_model(model, "CPU", self._config)
        return CompiledShape(compiled, self.slots + self.spare_slots)

    def _turned_model(self) -> Any:
        """One for all shapes: it has kernels of its own."""
        if self._turned is None:
            self._turned = self._model.clone()
            turn(self._turned, self.spec.result)
        return self._turned

    @contextmanager
    def memory_errors(self, what: str) -> Iterator[None]:
        """As base.memory_errors; where memory is short, shapes that do not run give up theirs."""
        try:
            with memory_errors(what):
                yield
        except DeviceMemoryError:
            with self._lock:
                self._compiled.clear()
            raise

    def slot(self) -> Slot:
        return OpenVinoSlot(self)

    def close(self) -> None:
        self._compiled.clear()


class OpenVinoSlot(Slot):
    """An inference request a shape, bound to this slot's buffers, or to others, without a copy."""

    def __init__(self, engine: OpenVinoEngine) -> None:
        self._engine = engine
        self._inputs, self._outputs, self._like = HostBuffer(), HostBuffer(), HostBuffer()
        self._images = self._inputs.view((0, 0, 0, engine.spec.channels))
        self._masks = self._outputs.view((0, 0, 0))
        self._shape: Shape | None = None
        self._compiled: CompiledShape | None = None
        self._request: Any = None
        self._n = 0

    @property
    def images(self) -> U8:
        return self._images

    def reserve(self, batch: int, size: Size) -> U8:
        self._images = self._inputs.view((batch, *size, self._engine.spec.channels))
        return self._images

    def use(self, images: U8) -> None:
        self._images = images

    def submit(self, n: int, size: Size) -> None:
        batch, h, w, _ = self._images.shape
        shape = (batch, h, w, *size)
        with self._engine.memory_errors(f"images {self._images.shape}, masks of {size}"):
            if shape != self._shape:
                self._bind(shape)
            self._request.set_tensor("image", self._tensor(self._images))
            self._request.start_async()
        self._n = n

    def _bind(self, shape: Shape) -> None:
        spec = self._engine.spec
        self._give_back()
        self._masks = self._outputs.view(spec.result_shape(shape[0], shape[3:]))
        compiled = self._engine.compiled(shape)
        request = compiled.take()
        self._compiled, self._request = compiled, request
        request.set_tensor("size_like", self._tensor(self._like.view(shape[3:])))
        request.set_tensor(spec.result, self._tensor(self._masks))
        self._shape = shape

    def _tensor(self, array: U8) -> Any:
        """The array itself, in OpenVINO's words."""
        return self._engine.tensor(array, shared_memory=True)

    def _give_back(self) -> None:
        """A request that was dropped in flight runs to its end first; one that fails goes."""
        if self._compiled is not None:
            with suppress(RuntimeError):
                self._request.wait()
                self._compiled.give_back(self._request)
        self._compiled, self._request, self._shape = None, None, None

    def masks(self) -> U8:
        if self._request is None:
            raise RuntimeError("masks() before submit()")
        with self._engine.memory_errors(f"images {self._images.shape}, masks {self._masks.shape}"):
            self._request.wait()
        return self._masks[: self._n]

    def layer_times(self) -> Any:
        """OpenVINO's ProfilingInfo of every layer in the last batch, in the order they ran."""
        return self._request.get_profiling_info()

    def close(self) -> None:
        self._give_back()


def supports_bf16() -> bool:
    """Whether this processor multiplies in bfloat16."""
    core = openvino_core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precision_hint(able: list[str], precision: str) -> str:
    """What is computed between int8 layers is bf16 only on a processor that has it."""
    hint = HINTS[precision]
    return "f32" if precision == "int8" and "BF16" not in able else hint


def _check_precision(able: list[str], precision: str) -> None:
    if precision not in HINTS:
        raise UserError("no such precision", seen=precision, expected=", ".join(HINTS))
    if precision == "bf16" and "BF16" not in able:
        raise UserError(
            "this processor has no bfloat16",
            seen=", ".join(able),
            hint="unetrt build CHECKPOINT -o ENGINE_DIR --backend openvino --precision fp32",
        )


def _read_model(core: Any, model: Path) -> Any:
    try:
        return core.read_model(str(model))
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read {model}", seen=str(error).strip()[-300:]) from error
