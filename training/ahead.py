"""Work done ahead in threads, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield work(task) in the order of the tasks; at most 2·workers are begun and not yet yielded.

    Without workers each is done when it is asked for. An exception is raised in its place.
    """
    if workers == 0:
        yield from map(work, tasks)
        return
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for task in tasks:
                if len(running) == 2 * workers:
                    yield running.popleft().result()
                running.append(pool.submit(work, task))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
