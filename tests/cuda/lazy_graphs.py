"""Cases for CUDA graphs on the lazy host driver; test_cuda_slot.py runs them in a process."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Hashable
from typing import Any

import onnxruntime
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import drive, make_slots
from tests.gpu import test_gpu_slot
from tests.gpu.test_gpu_slot import CopyKernel, wrong_masks
from unetrt.contract.errors import UserError
from unetrt.engine import cuda_graph
from unetrt.engine.cuda import BatchShape, CudaSlot, Kernel
from unetrt.engine.cuda_device import CudaDevice
from unetrt.engine.cuda_graph import CudaGraph, Replay, capture_graph

Session = onnxruntime.InferenceSession
FACED = (0, 0, 0, 0, 3, 3, 3, 3, 2, 2, 2, 2, 0, 0, 0, 0)
"""Shapes for one slot that grow and shrink, each for four batches."""


class CountingKernel(OnnxKernel):
    queued = 0

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        self.queued += 1
        super().enqueue(shape, image, size_like, mask, stream)


def test_a_static_shape_is_captured_once_and_replayed(
    device: CudaDevice,
    session: Session,
) -> None:
    kernels = [CountingKernel(session) for _ in range(2)]
    slots = [CudaSlot(device, 1, kernel) for kernel in kernels]
    before = driver.lazy_graph_launches()
    assert drive(slots, session, 60, seed=0, shapes=(1,)) == 0
    assert [kernel.queued for kernel in kernels] == [2, 2], "as it is, then captured"
    assert driver.lazy_graph_launches() - before == 58
    assert driver.lazy_graphs() == 2
    for slot in slots:
        slot.close()
        slot.close()


@pytest.mark.parametrize("eager", ["", "asked for"])
def test_the_slots_of_the_gpu_tests_run_here_too(eager: str, device: CudaDevice) -> None:
    kernels = [CopyKernel(eager) for _ in range(3)]
    slots = [CudaSlot(device, 1, kernel) for kernel in kernels]
    assert wrong_masks(slots, 60) == 0
    assert [kernel.queued for kernel in kernels] == ([20] * 3 if eager else [2] * 3)
    for slot in slots:
        slot.close()
    if not eager:
        test_gpu_slot.test_a_graph_is_replayed_wherever_images_and_masks_lie(device)


def test_a_new_shape_is_captured_anew(device: CudaDevice, session: Session) -> None:
    kernel = CountingKernel(session)
    slot = CudaSlot(device, 1, kernel)
    assert drive([slot], session, 4 * len(FACED), seed=1, shapes=FACED) == 0
    # Four blocks a round, each queued twice, but where a round begins as the last one ended.
    assert kernel.queued == 4 * 4 * 2 - 3 * 2
    assert driver.lazy_graphs() == 1
    slot.close()


def test_shapes_in_turn_run_without_a_graph(device: CudaDevice, session: Session) -> None:
    slot = CudaSlot(device, 1, OnnxKernel(session))
    before = driver.lazy_graph_launches()
    assert drive([slot], session, 20, seed=2, shapes=(0, 1)) == 0
    assert driver.lazy_graph_launches() == before
    slot.close()


class AllocatingKernel(OnnxKernel):
    """Works on the host as it is queued, which no capture allows."""

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        import pycuda.driver as cuda

        cuda.mem_alloc(64).free()
        super().enqueue(shape, image, size_like, mask, stream)


class WaitingKernel(OnnxKernel):
    """Swallows the error of a wait: the capture ends all the same."""

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        driver.cuStreamSynchronize(ctypes.c_void_p(stream))
        super().enqueue(shape, image, size_like, mask, stream)


class EagerKernel(OnnxKernel):
    eager = "it allocates"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AllocatingKernel, "when stream is capturing"),
        (WaitingKernel, "previous error during capture"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is_and_says_why_once(
    kind: type[OnnxKernel],
    reason: str,
    device: CudaDevice,
    session: Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cuda_graph._say_once.cache_clear()
    slots = [CudaSlot(device, 1, kind(session)) for _ in range(2)]
    before = driver.lazy_graph_launches()
    with caplog.at_level(logging.WARNING):
        assert drive(slots, session, 20, seed=3, shapes=(1,)) == 0
    assert driver.lazy_graph_launches() == before
    said = [record.message for record in caplog.records if "no CUDA graph" in record.message]
    assert said
    assert all(reason in message for message in said)
    assert len(set(said)) == len(said)
    for slot in slots:
        slot.close()


def test_a_kernel_that_says_so_is_never_captured(
    device: CudaDevice,
    session: Session,
) -> None:
    slot = CudaSlot(device, 1, EagerKernel(session))
    before = driver.lazy_graph_launches()
    assert drive([slot], session, 10, seed=4, shapes=(1,)) == 0
    assert driver.lazy_graph_launches() == before
    slot.close()


def test_an_error_while_capturing_leaves_the_stream_usable(device: CudaDevice) -> None:
    def fail() -> None:
        raise UserError("no")

    with device.current() as module:
        stream = module.Stream()
        with pytest.raises(UserError, match="no"):
            capture_graph(fail, stream.handle)
        capture_graph(lambda: None, stream.handle).free()
    assert driver.lazy_graphs() == 0


class ForgetsAddresses(Replay):
    """Fault: a graph a shape is kept, and replayed when its buffers have grown and moved."""

    def __init__(self) -> None:
        super().__init__()
        self._graphs: dict[Hashable, CudaGraph] = {}

    def run(self, key: Any, work: Callable[[], None], stream: int, what: str) -> None:
        shape = key[0]
        if shape not in self._graphs:
            self._graphs[shape] = capture_graph(work, stream)
        self._graphs[shape].launch(stream, what)

    def free(self) -> None:
        for graph in self._graphs.values():
            graph.free()
        self._graphs = {}


class ForgetsTheShape(Replay):
    """Fault: the first graph is replayed whatever shape comes."""

    def run(self, key: Hashable, work: Callable[[], None], stream: int, what: str) -> None:
        super().run("the same", work, stream, what)


class CapturesWithoutLaunch(Replay):
    """Fault: to capture is taken for to run."""

    def run(self, key: Hashable, work: Callable[[], None], stream: int, what: str) -> None:
        capture_graph(work, stream).free()


@pytest.mark.parametrize(
    ("kind", "wrong"), [(ForgetsAddresses, 4), (ForgetsTheShape, 12), (CapturesWithoutLaunch, 16)]
)
def test_a_planted_fault_gives_wrong_masks(
    kind: type[Replay],
    wrong: int,
    device: CudaDevice,
    session: Session,
) -> None:
    (slot,) = make_slots(device, session, 1)
    slot._replay = kind()
    assert drive([slot], session, len(FACED), seed=5, shapes=FACED) >= wrong
    slot.close()


def test_a_kernel_has_a_name_and_may_be_captured() -> None:
    assert Kernel.name
    assert not Kernel.eager
