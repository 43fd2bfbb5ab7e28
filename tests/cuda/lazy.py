"""The lazy host driver in this process, and a kernel that runs a network in ONNX Runtime on it.

Import this before anything loads CUDA: a process has one libcuda.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque

import numpy as np
import onnxruntime

from unetrt.contract.types import U8
from unetrt.engine.cuda import BatchShape, Kernel

driver = ctypes.CDLL(os.environ["LAZY_DRIVER"], mode=ctypes.RTLD_GLOBAL)
driver.lazy_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
NUMBERS = (
    "freed_in_flight",
    "forced",
    "memory_used",
    "streams",
    "blocking_streams",
    "graphs",
    "graph_launches",
)
for name in NUMBERS:
    getattr(driver, f"lazy_{name}").restype = ctypes.c_long
driver.lazy_set_memory_limit.argtypes = [ctypes.c_long]

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def memory(address: int, shape: tuple[int, ...]) -> U8:
    """The bytes at a device address: device memory is this process's own here."""
    count = int(np.prod(shape))
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8).reshape(shape)


class OnnxKernel(Kernel):
    """Queues the network; it reads and writes device memory when the stream is forced."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._alive: deque[object] = deque(maxlen=64)  # ctypes callbacks must outlive their call
        self.closed = False

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        def run(_: int) -> None:
            feeds = {
                "image": memory(image, shape.images),
                "size_like": memory(size_like, shape.mask_size),
            }
            memory(mask, shape.masks)[:] = self._session.run(None, feeds)[0]

        callback = _CALLBACK(run)
        self._alive.append(callback)
        status = driver.lazy_launch(stream, ctypes.cast(callback, ctypes.c_void_p), None)
        assert status == 0

    def close(self) -> None:
        self.closed = True
