"""A network that PyTorch captures into a CUDA graph, for Replay to run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from ..contract.errors import UserError, first_line

MOST_CAPTURES = 16
"""Of a slot whose shapes change: each takes longer than a batch that is queued call by call."""

_LIST = Lock()
"""PyTorch before 2.13 has one list of all graphs, which two threads must not change at once."""

_BROKEN: list[Any] = []
"""Graphs whose capture failed: PyTorch's allocators may ask them for ever which work is theirs."""


class NetGraph:
    """Owns a captured network and the memory that it runs in, which nothing else uses."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def launch(self, stream: int, what: str) -> None:
        """Queue it on the current stream."""
        del stream, what
        self._graph.replay()

    def free(self) -> None:
        """What is in flight must have ended."""
        with _LIST:
            self._graph.reset()
            self._graph = None
        give_back()


def capture_net(work: Callable[[], None], stream: int) -> NetGraph:
    """What work() queues on the current stream, not run. UserError where it cannot be captured.

    Then the memory that it took is given back. What other threads do meanwhile does not end it.
    Memory is the graph's own: PyTorch 2.11 does not capture a second time into a pool that is
    given to it.
    """
    del stream
    import torch

    graph = torch.cuda.CUDAGraph()
    try:
        with _LIST:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        why = first_line(error)
    else:
        return NetGraph(graph)
    _BROKEN.append(graph)
    NetGraph(graph).free()  # not before: the error holds what the network had computed
    raise UserError(why)


def give_back() -> None:
    """What PyTorch's pool holds for later, to whoever else needs device memory.

    A device that has failed gives nothing back, and has been told of.
    """
    import torch

    with suppress(RuntimeError):
        torch.cuda.empty_cache()
