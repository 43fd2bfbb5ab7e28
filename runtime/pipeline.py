"""Images → masks at the speed of the engine: load in threads, batch by size, slots in flight."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..contract.closing import Closing
from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.log import log
from ..contract.memory import memory_bytes
from ..contract.types import NO_CLASS, U8, Size
from ..engine.base import Engine, Slot
from ..engine.probe import usable_cores
from .buckets import Buckets, Key, bytes_of
from .budget import SHARE, Budget
from .fill import Fill
from .fit import MOST_UNFIT, Fit, no_memory, refuse_batch
from .threads import worker_pool
from .trace import NO_TRACE, NoTrace

T = TypeVar("T")
F = TypeVar("F")

Loaded = tuple[U8, Size]
"""A network input (h, w, C) and its mask's (H, W)."""

MOST_AHEAD = 4096
"""Images asked for ahead of the engine, whatever the batch."""


def writers_for(cores: int) -> int:
    """Threads that encode and write: less work than to decode."""
    return max(2, cores // 4)


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """None takes the engine's own batch, its own slots, and a thread a core.

    waiting: loaded images held in batches that are not full, before the fullest runs as it is;
    at least one batch. memory: bytes of loaded images, and as many of masks to be written; at least
    one of each. trace: where the stages note when they ran.
    """

    batch: int | None = None
    slots: int | None = None
    load_threads: int | None = None
    write_threads: int = field(default_factory=lambda: writers_for(usable_cores()))
    waiting: int = 64
    memory: int = field(default_factory=lambda: memory_bytes() // SHARE)
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
    batch, half of it is tried from then on; an image for which the smallest is too large fails.
    DeviceMemoryError when none has ever fitted.
    """
    with Pipeline(engine, load, consume, options or PipelineOptions(), stop) as pipeline:
        yield from pipeline.run(iter(tasks))


@dataclass
class _Flight(Generic[T]):
    """A batch on the engine."""

    slot: Slot
    tasks: list[T]
    key: Key
    batch: int
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
        engine.timed = options.trace.of_device
        batch, count = options.batch or engine.batch, options.slots or engine.slots
        self.fit = Fit(batch, count, engine.min_batch)
        self.waiting = max(options.waiting, batch)
        threads = options.load_threads or usable_cores()
        self.loaders = worker_pool(threads, "load")
        self.writers = worker_pool(options.write_threads, "write")
        self.slots: list[Slot] = []
        self.free: list[Slot] = []
        self.too_large = False
        self._open_slots()
        self.ahead = 2 * threads + min(batch * count, MOST_AHEAD)
        self.budget, self.tickets = Budget(options.memory), itertools.count()
        self.loading: deque[tuple[int, T, Future[Loaded]]] = deque()
        self.buckets: Buckets[T] = Buckets()
        self.unfit: list[Result[T]] = []
        self.flying: deque[_Flight[T]] = deque()
        self.numbers = itertools.count()
        self.writing: deque[tuple[T, Future[None], int]] = deque()
        self.unwritten = 0
        self.fill = Fill()

    def run(self, tasks: Iterator[T]) -> Iterator[Result[T]]:
        self._load_ahead(tasks)
        while self.loading and not self.stop():
            ticket, task, future = self.loading.popleft()
            self.budget.want(ticket)
            try:
                image, size = self._waited("wait for an image", future)
            except ImageError as error:
                yield Result(task, error)
            else:
                yield from self._bucket(task, image, size)
            self._load_ahead(tasks)
        while self.flying or (self.buckets.count and not self.stop()):
            for key in self.buckets.keys:
                while self.buckets.size(key) and not self.stop():
                    yield from self._launch(key)
            while self.flying:
                yield from self._land()
        yield from self._written(leave=0)
        self.fill.tell(self.engine.min_batch)
        if self.unfit and self.fit.error and not self.stop():
            raise self.fit.error

    def _load_ahead(self, tasks: Iterator[T]) -> None:
        while len(self.loading) < self.ahead and (task := next(tasks, None)) is not None:
            ticket = next(self.tickets)
            with self.trace.span("ask for an image"):
                future = self.loaders.submit(self._load, task, ticket)
            self.loading.append((ticket, task, future))

    def _load(self, task: T, ticket: int) -> Loaded:
        self.budget.admit(ticket)
        with self.trace.span("load"):
            image, size = self.load(task)
        self.budget.hold(image.nbytes)
        return image, size

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
        refusal = self.engine.refusal(*key)
        if refusal is None and self.options.batch is not None:
            refusal = refuse_batch(self.fit, image.nbytes, size)
        if refusal is not None:
            self.budget.give_back(image.nbytes)
            yield Result(task, refusal)
            return
        self.buckets.put(key, [(task, image)])
        while self.buckets.size(key) >= self.fit.batch:
            yield from self._launch(key)
        if self.buckets.count > self.waiting:
            yield from self._launch(self.buckets.fullest)
        while self.buckets.bytes > self.budget.most // 2:  # the other half is for what comes
            yield from self._launch(self.buckets.heaviest)

    def _launch(self, key: Key) -> Iterator[Result[T]]:
        """Fill a slot with a bucket and start it; a short batch runs padded."""
        while self.too_large or not self.free:
            if self.flying:
                yield from self._land()
            else:
                self._open_slots()
        batch = self.fit.batch
        bucket = self.buckets.take(key, batch)
        self.budget.give_back(bytes_of(bucket))
        tasks = [task for task, _ in bucket]
        slot = self.free.pop()
        number, row = next(self.numbers), self.slots.index(slot)
        try:
            with self.trace.span("fill a slot", batch=number, slot=row):
                images = slot.reserve(batch, key[0])
                for place, (_, image) in zip(images, bucket, strict=False):
                    place[:] = image
            started = time.perf_counter_ns()
            with self.trace.span("start a batch", batch=number, slot=row):
                slot.submit(len(bucket), key[1])
        except DeviceMemoryError as error:
            flight = _Flight(slot, tasks, key, batch, number, row, 0)
            yield from self._take_back(flight, lambda: [image for _, image in bucket], error)
        else:
            self.flying.append(_Flight(slot, tasks, key, batch, number, row, started))

    def _land(self) -> Iterator[Result[T]]:
        """Wait for the oldest slot and hand its masks to the writers."""
        flight = self.flying.popleft()
        slot, tasks, number = flight.slot, flight.tasks, flight.number
        try:
            with self.trace.span("wait for a batch", batch=number, slot=flight.row):
                masks = slot.masks()
        except DeviceMemoryError as error:
            loaded = slot.images[: len(tasks)]
            yield from self._take_back(flight, lambda: [image.copy() for image in loaded], error)
            return
        self.fit.ran(flight.batch, len(self.slots))
        self.fill.add(len(tasks), flight.batch)
        yield from self._tell_unfit()
        told = {"batch": number, "images": len(tasks), "of": flight.batch}
        self.trace.note("batch", flight.row, flight.started, slot.spans(), **told)
        for task, mask in zip(tasks, masks, strict=True):
            if (mask[..., 0, 0] == NO_CLASS).all():
                yield Result(task, ImageError("the network's output is not finite"))
            else:
                yield from self._write(task, mask, number)
        self.free.append(slot)
        yield from self._written(leave=4 * self.fit.batch + self.options.write_threads)

    def _write(self, task: T, mask: U8, batch: int) -> Iterator[Result[T]]:
        try:
            with self.trace.span("hand over a mask"):
                copy = mask.copy()
                future = self.writers.submit(self._consume, task, copy, batch)
        except MemoryError:
            yield Result(task, no_memory((mask.shape[-2], mask.shape[-1]), "its mask"))
            return
        self.unwritten += copy.nbytes
        self.writing.append((task, future, copy.nbytes))

    def _take_back(
        self, flight: _Flight[T], images: Callable[[], list[U8]], error: DeviceMemoryError
    ) -> Iterator[Result[T]]:
        """A batch that found no memory goes back to its bucket; the next one is smaller."""
        self.free.append(flight.slot)
        # Where a batch of before has said it already, this one only comes back.
        smaller = self.too_large or self.fit.shrink(len(self.slots), error)
        self.too_large = True
        found: list[U8] = []
        with suppress(MemoryError):
            found = images() if smaller else []
        if found:
            bucket = list(zip(flight.tasks, found, strict=True))
            self.budget.hold(bytes_of(bucket))
            self.buckets.put(flight.key, bucket)
            return
        failure = self.fit.refuse(flight.key[1], error)
        self.unfit += [Result(task, failure) for task in flight.tasks]
        yield from self._tell_unfit()

    def _tell_unfit(self) -> Iterator[Result[T]]:
        """Images too large by themselves: said once another one has fitted, and not before."""
        if self.fit.proven:
            yield from self.unfit
            self.unfit = []
        elif len(self.unfit) > MOST_UNFIT and self.fit.error:
            raise self.fit.error

    def _open_slots(self) -> None:
        """New slots for those that are too large: buffers do not shrink. Nothing is in flight."""
        for slot in self.slots:
            slot.close()
        self.slots, self.free, self.too_large = [], [], False
        try:
            for _ in range(self.fit.count):
                self.slots.append(self.engine.slot())
        except DeviceMemoryError as error:
            if not self.slots:
                raise
            self.fit.count = len(self.slots)
            log.warning("%s: from now on %d slots", error.reason, self.fit.count)
        self.free = list(self.slots)

    def _written(self, leave: int) -> Iterator[Result[T]]:
        """Results of finished writes; waits while more than `leave`, or too many bytes, are not."""
        while self.writing and (
            len(self.writing) > leave
            or self.unwritten > self.budget.most
            or self.writing[0][1].done()
        ):
            task, future, count = self.writing.popleft()
            self.unwritten -= count
            try:
                self._waited("wait for a writer", future)
            except ImageError as error:
                yield Result(task, error)
            else:
                yield Result(task)

    def close(self) -> None:
        """Start nothing new, wait for what runs, free the slots; twice is harmless."""
        self.budget.open()
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
