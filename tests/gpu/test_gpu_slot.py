"""On an NVIDIA GPU: the slot by itself, with a network that a CUDA graph can hold."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from unetrt.contract.types import U8
from unetrt.engine.base import Memory
from unetrt.engine.cuda import BatchShape, CudaSlot, Kernel
from unetrt.engine.cuda_buffers import PinnedMemory
from unetrt.engine.cuda_device import CudaDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

SIZE = (96, 128)
BATCH = 4


class CopyKernel(Kernel):
    """The mask is the image: a copy on the device, which needs no library but the driver."""

    name = "a copy"

    def __init__(self, eager: str = "") -> None:
        self.eager = eager
        self.queued = 0

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        self.queued += 1
        count = int(np.prod(shape.masks))
        copy = ctypes.CDLL("libcuda.so.1").cuMemcpyDtoDAsync_v2
        copy.argtypes = (ctypes.c_ulonglong, ctypes.c_ulonglong, ctypes.c_size_t, ctypes.c_void_p)
        assert copy(mask, image, count, stream) == 0

    def close(self) -> None:
        """Own nothing."""


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    pytest.importorskip("pycuda.driver")
    with_device = CudaDevice()
    yield with_device
    with_device.close()


def wrong_masks(slots: list[CudaSlot], count: int, seed: int = 0) -> int:
    """Batches of noise through slots that are kept in flight: how many come back changed."""
    rng = np.random.default_rng(seed)
    sent: list[U8] = []
    wrong = 0
    for index in range(count + len(slots)):
        slot = slots[index % len(slots)]
        if index >= len(slots):
            wrong += not np.array_equal(slot.masks(), sent.pop(0))
        if index < count:
            images = rng.integers(0, 256, (BATCH, *SIZE), dtype=np.uint8)
            slot.reserve(BATCH, SIZE)[..., 0] = images
            slot.submit(BATCH, SIZE)
            sent.append(images)
    return wrong


@pytest.mark.parametrize("eager", ["", "asked for"], ids=["graph", "no graph"])
def test_three_slots_in_flight_give_every_batch_its_own_masks(
    eager: str, device: CudaDevice
) -> None:
    kernels = [CopyKernel(eager) for _ in range(3)]
    slots = [CudaSlot(device, 1, kernel) for kernel in kernels]
    assert wrong_masks(slots, 600) == 0
    assert [kernel.queued for kernel in kernels] == ([200] * 3 if eager else [2] * 3)
    for slot in slots:
        slot.close()


def test_a_graph_is_replayed_wherever_images_and_masks_lie(device: CudaDevice) -> None:
    kernel, memory = CopyKernel(), PinnedMemory(device)
    slot = CudaSlot(device, 1, kernel)
    page = memory.view((3 * BATCH, *SIZE, 1))
    given: list[tuple[Memory, U8]] = []
    for index in range(60):
        images = page[index % 3 * BATCH :][:BATCH]
        images[:] = index
        slot.use(images)
        slot.submit(BATCH, SIZE)
        masks = slot.masks()
        assert (masks == index).all()
        for age, (_, older) in enumerate(reversed(given), 1):
            assert (older == index - age).all()
        unused = given.pop(0)[0] if len(given) == 3 else PinnedMemory(device)
        given.append((slot.exchange(unused), masks))
    assert kernel.queued == 2
    slot.close()
    for holder in (memory, *(one for one, _ in given)):
        holder.free()


def test_a_short_run_for_the_sanitizer(device: CudaDevice) -> None:
    slots = [CudaSlot(device, 1, CopyKernel()) for _ in range(2)]
    assert wrong_masks(slots, 12) == 0
    for slot in slots:
        slot.close()


def test_ten_thousand_replays_grow_neither_memory(device: CudaDevice) -> None:
    resource = pytest.importorskip("resource", reason="Windows has none")
    slots = [CudaSlot(device, 1, CopyKernel()) for _ in range(2)]
    assert wrong_masks(slots, 100) == 0
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    free = torch.cuda.mem_get_info()[0]
    assert wrong_masks(slots, 10_000, seed=1) == 0
    assert free - torch.cuda.mem_get_info()[0] < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host < 8 << 10, "KiB"
    for slot in slots:
        slot.close()


def test_a_timeline_shows_copies_of_slots_at_the_same_time(device: CudaDevice) -> None:
    slots = [CudaSlot(device, 1, CopyKernel(), timed=True) for _ in range(3)]
    ways: dict[str, list[tuple[int, int, int]]] = {"copy in": [], "compute": [], "copy out": []}
    for slot in slots:
        slot.reserve(32, (1024, 1024))[:] = 7
        slot.submit(32, (1024, 1024))
    for turn in range(30):
        slot = slots[turn % 3]
        assert slot.masks()[-1, -1, -1] == 7  # to look at all of them would leave the device idle
        for part, start, end in slot.spans():
            assert start <= end
            ways[part].append((turn % 3, start, end))
        slot.submit(32, (1024, 1024))
    for slot in slots:
        assert (slot.masks() == 7).all()
        slot.close()
    assert any(
        one != other and begin < until and start < end
        for one, begin, end in ways["copy in"]
        for other, start, until in ways["copy out"]
    )
