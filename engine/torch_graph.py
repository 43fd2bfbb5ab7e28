"""PyTorch's CUDA graphs: a network captured once for a batch of one shape, then one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ..contract.errors import first_line
from ..contract.log import log

MOST_CAPTURES = 16
"""Of a slot whose shapes change: each takes longer than a batch that is queued call by call."""


class NetGraph:
    """Runs a network on the current stream; the second time in a row of a key captures it.

    The first time runs as it is: libraries choose and make room in a call that is not captured.
    One graph is kept, that of the latest key, in memory that nothing else uses. refused: why
    nothing is captured any more, or empty.
    """

    def __init__(self) -> None:
        self.refused = ""
        self._captures = 0
        self._graph: Any = None
        self._key: Hashable = None

    def run(self, key: Hashable, work: Callable[[], None]) -> bool:
        """Whether a graph's memory has become free. key: the shapes and addresses of the work.

        Where it is another one than before, what was queued must have ended.
        """
        freed = key != self._key and self.forget()
        if key == self._key and self._graph is None and not self.refused:
            self._capture(work)
        if self._graph is None:
            work()
            self._key = key
        else:
            self._graph.replay()
        return freed

    def _capture(self, work: Callable[[], None]) -> None:
        """Where it fails, the reason is said once and the work runs as it is from then on.

        What other threads do meanwhile does not end it. Memory is the graph's own: PyTorch 2.11
        does not capture a second time into a pool that is given to it.
        """
        import torch

        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            self.refused = first_line(error)
            log.warning("no CUDA graph, every batch is queued call by call: %s", self.refused)
            return
        self._graph = graph
        self._captures += 1
        if self._captures == MOST_CAPTURES:
            self.refused = "the shapes of its batches change too often"

    def forget(self) -> bool:
        """Whether there was a graph. What was queued has ended."""
        graph, self._graph, self._key = self._graph, None, None
        if graph is not None:
            graph.reset()
        return graph is not None
