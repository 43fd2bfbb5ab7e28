"""Images → masks at the speed of the engine: load in threads, batch by size, slots in flight."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..contract.errors import ImageError
from ..contract.types import NO_CLASS, U8, Size
from ..engine.base import Engine, Slot

T = TypeVar("T")

Loaded = tuple[U8, Size]
"""A network input (h, w, C) and its mask's (H, W)."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """None takes the engine's own batch, its own slots, and a thread a core.

    waiting: loaded images held in batches that are not full, before the fullest runs as it is;
    at least one batch.
    """

    batch: int | None = None
    slots: int | None = None
    load_threads: int | None = None
    write_threads: int = 2
    waiting: int = 64


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
    nothing new is started and what is in flight is dropped.
    """
    pipeline = _Pipeline(engine, load, consume, options or PipelineOptions(), stop)
    try:
        yield from pipeline.run(iter(tasks))
    finally:
        pipeline.close()


class _Pipeline(Generic[T]):
    """The queues between the stages; every one is bounded."""

    def __init__(
        self,
        engine: Engine,
        load: Callable[[T], Loaded],
        consume: Callable[[T, U8], None],
        options: PipelineOptions,
        stop: Callable[[], bool],
    ) -> None:
        self.load, self.consume, self.options, self.stop = load, consume, options, stop
        self.batch = options.batch or engine.batch
        self.waiting = max(options.waiting, self.batch)
        threads = options.load_threads or os.cpu_count() or 1
        self.loaders = ThreadPoolExecutor(threads, thread_name_prefix="load")
        self.writers = ThreadPoolExecutor(options.write_threads, thread_name_prefix="write")
        self.free = [engine.slot() for _ in range(options.slots or engine.slots)]
        self.slots = tuple(self.free)
        self.ahead = 2 * threads + self.batch * len(self.slots)
        self.loading: deque[tuple[T, Future[Loaded]]] = deque()
        self.buckets: dict[tuple[Size, Size], list[tuple[T, U8]]] = {}
        self.flying: deque[tuple[Slot, list[T]]] = deque()
        self.writing: deque[tuple[T, Future[None]]] = deque()

    def run(self, tasks: Iterator[T]) -> Iterator[Result[T]]:
        self._load_ahead(tasks)
        while self.loading and not self.stop():
            task, future = self.loading.popleft()
            try:
                image, size = future.result()
            except ImageError as error:
                yield Result(task, error)
            else:
                yield from self._bucket(task, image, size)
            self._load_ahead(tasks)
        for key in list(self.buckets):
            if not self.stop():
                yield from self._launch(key)
        while self.flying:
            yield from self._land()
        yield from self._written(leave=0)

    def _load_ahead(self, tasks: Iterator[T]) -> None:
        while len(self.loading) < self.ahead:
            task = next(tasks, None)
            if task is None:
                return
            self.loading.append((task, self.loaders.submit(self.load, task)))

    def _bucket(self, task: T, image: U8, size: Size) -> Iterator[Result[T]]:
        key = ((image.shape[0], image.shape[1]), size)
        bucket = self.buckets.setdefault(key, [])
        bucket.append((task, image))
        if len(bucket) == self.batch:
            yield from self._launch(key)
        elif sum(map(len, self.buckets.values())) > self.waiting:
            yield from self._launch(max(self.buckets, key=lambda k: len(self.buckets[k])))

    def _launch(self, key: tuple[Size, Size]) -> Iterator[Result[T]]:
        """Fill a slot with a bucket and start it; a short batch runs padded."""
        bucket = self.buckets.pop(key)
        if not self.free:
            yield from self._land()
        slot = self.free.pop()
        images = slot.reserve(self.batch, key[0])
        for row, (_, image) in zip(images, bucket, strict=False):
            row[:] = image
        slot.submit(len(bucket), key[1])
        self.flying.append((slot, [task for task, _ in bucket]))

    def _land(self) -> Iterator[Result[T]]:
        """Wait for the oldest slot and hand its masks to the writers."""
        slot, tasks = self.flying.popleft()
        masks = slot.masks()
        for task, mask in zip(tasks, masks, strict=True):
            if mask[0, 0] == NO_CLASS:
                yield Result(task, ImageError("the network's output is not finite"))
            else:
                future = self.writers.submit(self.consume, task, mask.copy())
                self.writing.append((task, future))
        self.free.append(slot)
        yield from self._written(leave=4 * self.batch + self.options.write_threads)

    def _written(self, leave: int) -> Iterator[Result[T]]:
        """Results of finished writes; waits while more than `leave` are not."""
        while self.writing and (len(self.writing) > leave or self.writing[0][1].done()):
            task, future = self.writing.popleft()
            try:
                future.result()
            except ImageError as error:
                yield Result(task, error)
            else:
                yield Result(task)

    def close(self) -> None:
        """Start nothing new, wait for what runs, free the slots."""
        self.loaders.shutdown(cancel_futures=True)
        self.writers.shutdown(cancel_futures=False)
        with ExitStack() as stack:  # every slot is freed, also when a run has failed
            for slot in self.slots:
                stack.callback(slot.close)
            for slot, _ in self.flying:
                stack.callback(slot.masks)
