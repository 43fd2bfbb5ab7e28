"""Images that threads load ahead of the engine, as far as the memory allows."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from ..contract.closing import Closing
from ..contract.types import U8, Size
from .buckets import Found
from .budget import Budget
from .pages import Pages
from .threads import worker_pool
from .trace import NoTrace

T = TypeVar("T")

MOST_AHEAD = 4096
"""Images asked for ahead of the engine, whatever the batch."""


@dataclass(frozen=True)
class Decoded:
    """An image that has been read, whose network input (h, w, C) is still to be made.

    size: (H, W) of its mask. resized: writes the input into an array, or gives one of its own.
    """

    input_size: Size
    size: Size
    resized: Callable[[U8 | None], U8]


Loaded: TypeAlias = tuple[U8, Size] | Decoded
"""A network input (h, w, C) and its mask's (H, W), or what these are made of."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """A task, and its image once it is loaded. ticket: its number."""

    task: T
    ticket: int
    future: Future[tuple[Found[T], Size]]


class Loading(Closing, Generic[T]):
    """Threads that load, and the tasks whose images they are loading, in order.

    ahead: so many tasks are asked for before they are wanted.
    """

    def __init__(
        self,
        load: Callable[[T], Loaded],
        threads: int,
        budget: Budget,
        pages: Pages,
        trace: NoTrace,
    ) -> None:
        self._load, self._budget, self._pages, self._trace = load, budget, pages, trace
        self.threads, self.ahead = threads, 0
        self._pool = worker_pool(threads, "load")
        self._tickets = itertools.count()
        self._asked: deque[Asked[T]] = deque()

    def ask(self, tasks: Iterator[T]) -> bool:
        """Ask for as many as are to be loaded ahead; whether there is any."""
        while len(self._asked) < self.ahead and (task := next(tasks, None)) is not None:
            with self._trace.span("ask for an image"):
                ticket = next(self._tickets)
                future = self._pool.submit(self._found, task, ticket)
                self._asked.append(Asked(task, ticket, future))
        return bool(self._asked)

    def next(self) -> Asked[T]:
        """The one that was asked for first: its image is wanted now, whatever the memory holds."""
        asked = self._asked.popleft()
        self._budget.want(asked.ticket)
        return asked

    def _found(self, task: T, ticket: int) -> tuple[Found[T], Size]:
        self._budget.admit(ticket)
        with self._trace.span("load"):
            found, size = self._placed(task, self._load(task))
        self._budget.hold(found.image.nbytes)
        return found, size

    def _placed(self, task: T, loaded: Loaded) -> tuple[Found[T], Size]:
        """Its network input in a row of a page where there is one."""
        if not isinstance(loaded, Decoded):
            image, size = loaded
            return Found(task, image), size
        row = self._pages.take((loaded.input_size, loaded.size))
        if row is None:
            return Found(task, loaded.resized(None)), loaded.size
        try:
            image = loaded.resized(row.image)
        except BaseException:
            self._pages.refuse(row)
            raise
        return Found(task, image, row), loaded.size

    def close(self) -> None:
        """Start nothing new, wait for what is being loaded; twice is harmless."""
        self._budget.open()
        self._pool.shutdown(cancel_futures=True)
        self._asked.clear()
