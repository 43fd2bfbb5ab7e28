"""Images → masks at the speed of the engine: load in threads, batch by size, slots in flight."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.log import log
from ..contract.types import NO_CLASS, U8, Size
from ..engine.base import Engine, Slot
from .trace import NO_TRACE, NoTrace

T = TypeVar("T")
F = TypeVar("F")

Loaded = tuple[U8, Size]
"""A network input (h, w, C) and its mask's (H, W)."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """None takes the engine's own batch, its own slots, and a thread a core.

    waiting: loaded images held in batches that are not full, before the fullest runs as it is;
    at least one batch. trace: where the stages note when they ran.
    """

    batch: int | None = None
    slots: int | None = None
    load_threads: int | None = None
    write_threads: int = 2
    waiting: int = 64
    trace: NoTrace = NO_TRACE


@dataclass(frozen=True)
class Result(Generic[T]):
    """error is None for a task that was loaded, run and consumed."""

    task: T
    error: ImageError | None = None

    @property
    def reason(self) -> str:
        """Why it failed and what helps, on one line; empty for a task that did not."""
        if self.error is None:
            return ""
        hint = f"; Hint: {self.error.hint}" if self.error.hint else ""
        return self.error.reason + hint


def run_pipeline(
    engine: Engine,
    tasks: Iterable[T],
    load: Callable[[T], Loaded],
    consume: Callable[[T, U8], None],
    options: PipelineOptions | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Result[T]]:
    """Yield one Result a task, in no fixed order; memory does not grow with their number.

    load and consume(task, mask (H, W)) run in threads: their ImageError costs that task alone,
    anything else that they raise ends the run. Once stop() is true, what runs on the engine is
    finished and written, and what is only loaded is dropped. When the caller stops early,
    nothing new is started and what is in flight is dropped. Where the device has no memory for a
    batch, half of it is tried from then on; DeviceMemoryError when the smallest does not fit.
    """
    with Pipeline(engine, load, consume, options or PipelineOptions(), stop) as pipeline:
        yield from pipeline.run(iter(tasks))


@dataclass
class _Flight(Generic[T]):
    """A batch on the engine."""

    slot: Slot
    tasks: list[T]
    key: tuple[Size, Size]
    number: int
    row: int
    started: int


class Pipeline(Closing, Generic[T]):
    """The queues between the stages; every one is bounded. Its slots serve one run after another.

    See run_pipeline.
    """

    def __init__(
        self,
        engine: Engine,
        load: Callable[[T], Loaded],
        consume: Callable[[T, U8], None],
        options: PipelineOptions,
        stop: Callable[[], bool],
    ) -> None:
        self.load, self.consume, self.options, self.stop = load, consume, options, stop
        self.engine, self.trace = engine, options.trace
        self.batch = options.batch or engine.batch
        self.waiting = max(options.waiting, self.batch)
        threads = options.load_threads or os.cpu_count() or 1
        self.loaders = ThreadPoolExecutor(threads, thread_name_prefix="load")
        self.writers = ThreadPoolExecutor(options.write_threads, thread_name_prefix="write")
        self.slots: list[Slot] = []
        self.free: list[Slot] = []
        self.count = options.slots or engine.slots
        self.too_large = False
        self._open_slots()
        self.ahead = 2 * threads + self.batch * self.count
        self.loading: deque[tuple[T, Future[Loaded]]] = deque()
        self.buckets: dict[tuple[Size, Size], list[tuple[T, U8]]] = {}
        self.flying: deque[_Flight[T]] = deque()
        self.numbers = itertools.count()
        self.writing: deque[tuple[T, Future[None]]] = deque()

    def run(self, tasks: Iterator[T]) -> Iterator[Result[T]]:
        self._load_ahead(tasks)
        while self.loading and not self.stop():
            task, future = self.loading.popleft()
            try:
                image, size = self._waited("wait for an image", future)
            except ImageError as error:
                yield Result(task, error)
            else:
                yield from self._bucket(task, image, size)
            self._load_ahead(tasks)
        while self.flying or (self.buckets and not self.stop()):
            for key in list(self.buckets):
                while key in self.buckets and not self.stop():
                    yield from self._launch(key)
            while self.flying:
                yield from self._land()
        yield from self._written(leave=0)

    def _load_ahead(self, tasks: Iterator[T]) -> None:
        while len(self.loading) < self.ahead:
            task = next(tasks, None)
            if task is None:
                return
            self.loading.append((task, self.loaders.submit(self._load, task)))

    def _load(self, task: T) -> Loaded:
        with self.trace.span("load"):
            return self.load(task)

    def _consume(self, task: T, mask: U8, batch: int) -> None:
        with self.trace.span("save", batch=batch):
            self.consume(task, mask)

    def _waited(self, name: str, future: Future[F]) -> F:
        if future.done():
            return future.result()
        with self.trace.span(name):
            return future.result()

    def _bucket(self, task: T, image: U8, size: Size) -> Iterator[Result[T]]:
        key = ((image.shape[0], image.shape[1]), size)
        self.buckets.setdefault(key, []).append((task, image))
        while len(self.buckets.get(key, ())) >= self.batch:
            yield from self._launch(key)
        if sum(map(len, self.buckets.values())) > self.waiting:
            yield from self._launch(max(self.buckets, key=lambda k: len(self.buckets[k])))

    def _launch(self, key: tuple[Size, Size]) -> Iterator[Result[T]]:
        """Fill a slot with a bucket and start it; a short batch runs padded."""
        while self.too_large or not self.free:
            if self.flying:
                yield from self._land()
            else:
                self._open_slots()
        waiting = self.buckets.pop(key)
        bucket = waiting[: self.batch]
        if len(waiting) > self.batch:
            self.buckets[key] = waiting[self.batch :]
        slot = self.free.pop()
        number, row = next(self.numbers), self.slots.index(slot)
        try:
            with self.trace.span("fill a slot", batch=number, slot=row):
                images = slot.reserve(self.batch, key[0])
                for place, (_, image) in zip(images, bucket, strict=False):
                    place[:] = image
            started = time.perf_counter_ns()
            with self.trace.span("start a batch", batch=number, slot=row):
                slot.submit(len(bucket), key[1])
        except DeviceMemoryError as error:
            self._take_back(slot, key, bucket, error)
        else:
            tasks = [task for task, _ in bucket]
            self.flying.append(_Flight(slot, tasks, key, number, row, started))

    def _land(self) -> Iterator[Result[T]]:
        """Wait for the oldest slot and hand its masks to the writers."""
        flight = self.flying.popleft()
        slot, tasks, number = flight.slot, flight.tasks, flight.number
        try:
            with self.trace.span("wait for a batch", batch=number, slot=flight.row):
                masks = slot.masks()
        except DeviceMemoryError as error:
            images = [image.copy() for image in slot.images[: len(tasks)]]
            self._take_back(slot, flight.key, list(zip(tasks, images, strict=True)), error)
            return
        self.trace.note("batch", flight.row, flight.started, batch=number, images=len(tasks))
        for task, mask in zip(tasks, masks, strict=True):
            if (mask[..., 0, 0] == NO_CLASS).all():
                yield Result(task, ImageError("the network's output is not finite"))
            else:
                future = self.writers.submit(self._consume, task, mask.copy(), number)
                self.writing.append((task, future))
        self.free.append(slot)
        yield from self._written(leave=4 * self.batch + self.options.write_threads)

    def _take_back(
        self, slot: Slot, key: tuple[Size, Size], bucket: list[tuple[T, U8]], error: UserError
    ) -> None:
        """A batch that found no memory goes back to its bucket; the next one is smaller."""
        self.free.append(slot)
        self.buckets[key] = bucket + self.buckets.get(key, [])
        if not self.too_large:  # else a batch of before has said it
            self._use_less_memory(error)

    def _use_less_memory(self, error: UserError) -> None:
        """Halve the batch, then take one slot. Raises `error` where neither is possible."""
        half = self.batch // 2
        if half >= self.engine.min_batch:
            self.batch, now = half, f"{half} images a batch"
        elif len(self.slots) > 1:
            self.count, now = 1, "one batch at a time"
        else:
            raise error
        self.too_large = True
        log.warning("%s: from now on %s", error.reason, now)

    def _open_slots(self) -> None:
        """New slots for those that are too large: buffers do not shrink. Nothing is in flight."""
        for slot in self.slots:
            slot.close()
        self.slots, self.free, self.too_large = [], [], False
        try:
            for _ in range(self.count):
                self.slots.append(self.engine.slot())
        except DeviceMemoryError as error:
            if not self.slots:
                raise
            self.count = len(self.slots)
            log.warning("%s: from now on %d slots", error.reason, self.count)
        self.free = list(self.slots)

    def _written(self, leave: int) -> Iterator[Result[T]]:
        """Results of finished writes; waits while more than `leave` are not."""
        while self.writing and (len(self.writing) > leave or self.writing[0][1].done()):
            task, future = self.writing.popleft()
            try:
                self._waited("wait for a writer", future)
            except ImageError as error:
                yield Result(task, error)
            else:
                yield Result(task)

    def close(self) -> None:
        """Start nothing new, wait for what runs, free the slots; twice is harmless."""
        self.loaders.shutdown(cancel_futures=True)
        self.writers.shutdown(cancel_futures=False)
        with ExitStack() as stack:  # every slot is freed, also when a run has failed
            for slot in self.slots:
                stack.callback(slot.close)
            for flight in self.flying:
                stack.callback(_drop, flight.slot)
            self.slots, self.flying = [], deque()


def _drop(slot: Slot) -> None:
    """Wait for masks that nobody wants; an error of theirs must not hide the one that ended it."""
    with suppress(UserError):
        slot.masks()
