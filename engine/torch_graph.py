"""PyTorch's CUDA graphs: a network captured once for a batch of one shape, then one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ..contract.errors import first_line
from ..contract.log import log


class GraphPools:
    """Device memory of graphs, kept for the next slot when one is closed.

    A graph's own memory is never given to anything else while the graph can still run; with ever
    new pools every job of a process would take some more.
    """

    def __init__(self) -> None:
        self._idle: list[Any] = []

    def take(self) -> Any:
        import torch

        return self._idle.pop() if self._idle else torch.cuda.MemPool()

    def give(self, pool: Any) -> None:
        """Take one back whose graph has been reset."""
        self._idle.append(pool)

    def clear(self) -> None:
        """Let PyTorch have the memory: the next torch.cuda.empty_cache() gives it back."""
        self._idle.clear()


class NetGraph:
    """Runs a network on the current stream; the second time in a row of a key captures it.

    The first time runs as it is: libraries choose and make room in a call that is not captured.
    One graph is kept, that of the latest key. refused: why nothing is captured, or empty.
    """

    def __init__(self, pools: GraphPools) -> None:
        self.refused = ""
        self._graph: Any = None  # before its memory: at the end of a process it goes first
        self._pool: Any = None
        self._pools = pools
        self._key: Hashable = None

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """key: all that a graph has baked in, shapes and addresses.

        Where it is another one than before, what was queued must have ended.
        """
        if key != self._key:
            self._forget()
        elif self._graph is None and not self.refused:
            self._capture(work)
        if self._graph is None:
            work()
            self._key = key
        else:
            self._graph.replay()

    def _capture(self, work: Callable[[], None]) -> None:
        """Where it fails, the reason is said once and the work runs as it is from then on.

        What other threads do meanwhile does not end it.
        """
        import torch

        graph = torch.cuda.CUDAGraph()
        try:
            self._pool = self._pool or self._pools.take()
            graph.capture_begin(pool=self._pool.id, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            self.refused = first_line(error)
            log.warning("no CUDA graph, every batch is queued call by call: %s", self.refused)
            graph.reset()
            return
        self._graph = graph

    def _forget(self) -> None:
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._key = None, None

    def close(self) -> None:
        """What was queued has ended; twice is harmless."""
        self._forget()
        if self._pool is not None:
            self._pools.give(self._pool)
        self._pool = None
