"""Slots for backends whose run call blocks: the engine's worker thread makes it return at once."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor

from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from .base import Engine, HostBuffer, Memory, Slot, memory_errors


class HostEngine(Engine):
    """Runs batches one after the other, each on all cores; two slots hide the rest."""

    any_memory = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix=self.backend)

    def slot(self) -> Slot:
        return HostSlot(self)

    def close(self) -> None:
        self.worker.shutdown()

    @abstractmethod
    def infer(self, images: U8, masks: U8) -> None:
        """Run (N, h, w, C) and write the result, (N, H, W) or (N, classes, H, W).

        Called on the worker thread.
        """


class HostSlot(Slot):
    """Two host buffers and the future of the run between them."""

    def __init__(self, engine: HostEngine) -> None:
        self._engine = engine
        self._inputs = HostBuffer()
        self._outputs: Memory = HostBuffer()
        self._images = self._inputs.view((0, 0, 0, engine.spec.channels))
        self._running: Future[None] | None = None
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
        self._n = n
        shape = self._engine.spec.result_shape(len(self._images), size)
        self._masks = self._outputs.view(shape)
        self._running = self._engine.worker.submit(self._engine.infer, self._images, self._masks)

    def masks(self) -> U8:
        if self._running is None:
            raise RuntimeError("masks() before submit()")
        with memory_errors(f"images {self._images.shape}, masks {self._masks.shape}"):
            self._running.result()
        return self._masks[: self._n]

    def exchange(self, memory: Memory) -> Memory:
        given, self._outputs = self._outputs, memory
        return given
