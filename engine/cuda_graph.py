"""CUDA graphs: the work of a slot captured once for a shape, then started by one call.

pycuda has no graph calls. Six functions of the driver are reached through ctypes, on the library
that pycuda itself is linked to: one libcuda in the process, no wheel more, and none to keep in
step with the driver, as cuda-bindings would be.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol

from ..contract.errors import DeviceMemoryError, UserError
from ..contract.log import log

OUT_OF_MEMORY = 2
THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not end a capture."""

_HANDLE = ctypes.c_void_p
_SIGNATURES = {
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, _HANDLE),
    "cuGraphInstantiateWithFlags": (_HANDLE, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
    "cuGetErrorString": (ctypes.c_int, _HANDLE),
}


class Graph(Protocol):
    """Something captured that can be launched."""

    def launch(self, stream: int, what: str) -> None: ...
    def free(self) -> None: ...


class CudaGraph:
    """Owns a graph that can be launched. Use with the device current."""

    def __init__(self, executable: int) -> None:
        self._executable: int | None = executable

    def launch(self, stream: int, what: str) -> None:
        """Queue all that was captured, on the addresses that it was captured with."""
        _check(_driver().cuGraphLaunch(self._executable, stream), f"launch the CUDA graph: {what}")

    def free(self) -> None:
        """What is in flight must have ended; twice is harmless."""
        if self._executable is not None:
            _driver().cuGraphExecDestroy(self._executable)
            self._executable = None


def capture_graph(work: Callable[[], None], stream: int) -> CudaGraph:
    """What work() queues on `stream`, not run. Raises UserError where it cannot be captured."""
    driver = _driver()
    _check(driver.cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "begin a capture")
    graph, executable = _HANDLE(), _HANDLE()
    try:
        work()
    except BaseException:  # a stream that is left capturing takes no work any more
        if driver.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0:
            driver.cuGraphDestroy(graph)
        raise
    _check(driver.cuStreamEndCapture(stream, ctypes.byref(graph)), "capture the network")
    status = driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
    driver.cuGraphDestroy(graph)
    _check(status, "instantiate a CUDA graph")
    assert executable.value is not None
    return CudaGraph(executable.value)


class Replay:
    """Runs a slot's work; the second time in a row that it is the same, captures and replays it.

    The first time runs as it is: TensorRT settles a new shape in a call that is not captured.
    One graph is kept, that of the latest work: a TensorRT context that has taken another shape
    must not be used by a graph of the old one. `refused`: why nothing is captured, or empty.
    capture: as capture_graph. most: captures, after which that is no gain; None is any number.
    """

    def __init__(
        self,
        refused: str = "",
        capture: Callable[[Callable[[], None], int], Graph] = capture_graph,
        most: int | None = None,
    ) -> None:
        self.refused = refused
        self._make, self._left = capture, most
        self._graph: Graph | None = None
        self._key: Hashable = None

    def run(self, key: Hashable, work: Callable[[], None], stream: int, what: str) -> None:
        """key: all that a graph has baked in, shapes and addresses. The last run must have ended.

        what: the work, for messages. Where a capture fails, the reason is said once and the work
        runs as it is from then on.
        """
        if key != self._key:
            self.free()
        elif self._graph is None and not self.refused:
            self._capture(work, stream)
        if self._graph is None:
            work()
            self._key = key
        else:
            self._graph.launch(stream, what)

    def _capture(self, work: Callable[[], None], stream: int) -> None:
        try:
            self._graph = self._make(work, stream)
        except UserError as error:
            self.refuse(error.reason)
            return
        if self._left is not None:
            self._left -= 1
            if self._left == 0:  # no fault: the masks are the same, and nobody can help it
                self.refused = "the shapes of its batches change too often"

    def refuse(self, reason: str) -> None:
        """Capture nothing from now on, and say why once, where that was not known before."""
        if not self.refused:
            self.refused = reason
            _say_once(reason)

    def free(self) -> None:
        """Forget the graph; twice is harmless."""
        if self._graph is not None:
            self._graph.free()
        self._graph, self._key = None, None


@cache
def _say_once(reason: str) -> None:
    """Every slot of an engine has the same reason."""
    log.warning("no CUDA graph, every batch is queued call by call: %s", reason)


@cache
def _driver() -> Any:
    """libcuda, already loaded by pycuda under this name. Raises UserError for one of old."""
    driver = ctypes.CDLL("libcuda.so.1")
    for name, arguments in _SIGNATURES.items():
        try:
            getattr(driver, name).argtypes = arguments
        except AttributeError as error:
            raise UserError("this driver has no CUDA graphs", seen=error) from error
    return driver


def _check(status: int, what: str) -> None:
    """Raise UserError, DeviceMemoryError among them, for a status of the driver that is not 0."""
    if status == 0:
        return
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(status, ctypes.byref(text))
    seen = (text.value or b"").decode() or f"status {status}"
    kind = DeviceMemoryError if status == OUT_OF_MEMORY else UserError
    raise kind(f"CUDA failed to {what}", seen=seen)
