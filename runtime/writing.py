"""Masks on their way to files: the threads that write them, and what became of each task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..contract.errors import ImageError
from ..contract.types import U8
from .fit import no_memory
from .lending import Loan
from .threads import worker_pool
from .trace import NoTrace

T = TypeVar("T")


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


class Writing(Generic[T]):
    """Hands masks to threads that consume them, and yields what became of each task.

    most: bytes of masks that may wait, or one.
    """

    def __init__(
        self, consume: Callable[[T, U8], None], threads: int, most: int, trace: NoTrace
    ) -> None:
        self.consume, self.most, self.trace = consume, most, trace
        self._threads = threads
        self._pool = worker_pool(threads, "write")
        self._queue: deque[tuple[T, Future[None], int]] = deque()
        self._bytes = 0

    def put(
        self, task: T, mask: U8, batch: int, *, own: bool = False, loan: Loan | None = None
    ) -> Iterator[Result[T]]:
        """Write (H, W) or (C, H, W); a copy of it, unless the array is the task's own, or lent."""
        try:
            kept = mask if own or loan is not None else mask.copy()
            if loan is not None:
                loan.hold()
            future = self._pool.submit(self._consume, task, kept, batch, loan)
        except MemoryError:
            yield Result(task, no_memory((mask.shape[-2], mask.shape[-1]), "its mask"))
            return
        self._bytes += kept.nbytes
        self._queue.append((task, future, kept.nbytes))

    def _consume(self, task: T, mask: U8, batch: int, loan: Loan | None) -> None:
        try:
            with self.trace.span("save", batch=batch):
                self.consume(task, mask)
        finally:
            if loan is not None:
                loan.let_go()

    def results(self, waiting: int | None = None) -> Iterator[Result[T]]:
        """Of what is written; waits while more than `waiting` masks, or too many bytes, are not.

        None waits for all.
        """
        leave = 0 if waiting is None else waiting + self._threads
        while self._queue and (
            len(self._queue) > leave or self._bytes > self.most or self._queue[0][1].done()
        ):
            task, future, count = self._queue.popleft()
            self._bytes -= count
            try:
                self.trace.waited("wait for a writer", future)
            except ImageError as error:
                yield Result(task, error)
            else:
                yield Result(task)

    def close(self) -> None:
        """Wait for what is being written; twice is harmless."""
        self._pool.shutdown(cancel_futures=False)
