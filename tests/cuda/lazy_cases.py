"""Cases for the CUDA slot on the lazy host driver; test_cuda_slot.py runs them in a process."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8, Size
from unetrt.engine.cuda import BatchShape, CudaSlot
from unetrt.engine.cuda_device import CudaDevice

SHAPES: tuple[tuple[int, Size, Size], ...] = (
    (1, (16, 20), (16, 20)),
    (3, (24, 16), (48, 32)),
    (2, (33, 17), (33, 17)),
    (4, (16, 16), (31, 40)),
)


def pictures(rng: np.random.Generator, batch: int, size: Size) -> U8:
    return rng.integers(0, 256, (batch, *size, 1), dtype=np.uint8)


def expected(session: onnxruntime.InferenceSession, images: U8, size: Size) -> U8:
    feeds = {"image": images, "size_like": np.zeros(size, np.uint8)}
    masks: U8 = session.run(None, feeds)[0]
    return masks


def drive(
    slots: list[CudaSlot],
    session: onnxruntime.InferenceSession,
    batches: int,
    seed: int,
    shapes: tuple[int, ...] = (),
) -> int:
    """Keep all slots in flight over changing shapes; return the number of wrong batches.

    shapes: which of SHAPES come, in turn; drawn where none are named.
    """
    rng = np.random.default_rng(seed)
    flying: list[tuple[CudaSlot, U8, int]] = []
    wrong = 0

    def land() -> int:
        slot, truth, n = flying.pop(0)
        return int(not np.array_equal(slot.masks(), truth[:n]))

    for index in range(batches):
        if len(flying) == len(slots):
            wrong += land()
        shape = shapes[index % len(shapes)] if shapes else int(rng.integers(len(SHAPES)))
        batch, input_size, mask_size = SHAPES[shape]
        images = pictures(rng, batch, input_size)
        n = int(rng.integers(1, batch + 1))
        slot = slots[index % len(slots)]
        slot.reserve(batch, input_size)[:] = images
        slot.submit(n, mask_size)
        flying.append((slot, expected(session, images, mask_size), n))
    while flying:
        wrong += land()
    return wrong


def make_slots(device: CudaDevice, session: Any, count: int, kind: Any = CudaSlot) -> list[Any]:
    return [kind(device, 1, OnnxKernel(session)) for _ in range(count)]


def test_masks_are_right_over_thousands_of_batches_and_changing_shapes(
    device: CudaDevice, session: onnxruntime.InferenceSession
) -> None:
    slots = make_slots(device, session, 3)
    assert drive(slots, session, 2000, seed=0) == 0
    for slot in slots:
        slot.close()
        slot.close()
        assert slot._kernel.closed
    again = make_slots(device, session, 3)
    streams = {slot._stream.handle for slot in again}
    assert len(streams) == driver.lazy_streams() == 3, "those of the slots before"
    for slot in again:
        slot.close()


def test_streams_do_not_wait_for_the_legacy_one(
    device: CudaDevice, session: onnxruntime.InferenceSession
) -> None:
    """A capture on a blocking stream fails as soon as another library uses the legacy stream."""
    for slot in make_slots(device, session, 2):
        slot.close()
    assert driver.lazy_blocking_streams() == 0


def test_memory_stays_what_the_largest_shape_needs(
    device: CudaDevice, session: onnxruntime.InferenceSession
) -> None:
    slots = make_slots(device, session, 2)
    drive(slots, session, 60, seed=1)
    before = driver.lazy_memory_used()
    drive(slots, session, 200, seed=2)
    assert driver.lazy_memory_used() == before
    for slot in slots:
        slot.close()


def test_threads_with_slots_of_their_own_do_not_disturb_each_other(
    device: CudaDevice, session: onnxruntime.InferenceSession
) -> None:
    wrong: list[int] = []
    depths: list[int] = []

    def work(seed: int) -> None:
        slots = make_slots(device, session, 2)
        wrong.append(drive(slots, session, 150, seed))
        for slot in slots:
            slot.close()
        depths.append(driver.lazy_context_depth())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 4
    assert depths == [0] * 4


def test_an_allocation_that_fails_is_told_and_leaves_the_slot_usable(
    device: CudaDevice, session: onnxruntime.InferenceSession
) -> None:
    slot = CudaSlot(device, 1, OnnxKernel(session))
    driver.lazy_set_memory_limit(100)
    try:
        slot.reserve(1, (64, 64))
        with pytest.raises(UserError, match="start a batch"):
            slot.submit(1, (64, 64))
    finally:
        driver.lazy_set_memory_limit(-1)
    images = pictures(np.random.default_rng(0), 1, (64, 64))
    slot.reserve(1, (64, 64))[:] = images
    slot.submit(1, (64, 64))
    assert np.array_equal(slot.masks(), expected(session, images, (64, 64)))
    slot.close()


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no CUDA device 3"):
        CudaDevice(3)


class WithoutWait(CudaSlot):
    """Fault: masks are handed out before they have been copied."""

    def masks(self) -> U8:
        self._busy = False
        return self._masks[: self._n].copy()


class RefillsTooEarly(CudaSlot):
    """Fault: the pinned input is handed out again while its copy is queued."""

    def submit(self, n: int, size: Size) -> None:
        super().submit(n, size)
        self._images[:] = 0


class StaleAddress(CudaSlot):
    """Fault: the network writes to where the masks were, not to where they are."""

    def _queue(self, driver: Any, shape: BatchShape) -> None:
        kernel, old = self._kernel, np.zeros(1 << 16, np.uint8)

        class Stale:
            eager, make_room = kernel.eager, kernel.make_room

            def enqueue(
                self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
            ) -> None:
                kernel.enqueue(shape, image, size_like, old.ctypes.data, stream)

        self._kernel = Stale()  # type: ignore[assignment]
        self._old = old
        try:
            super()._queue(driver, shape)
        finally:
            self._kernel = kernel


class WithoutCopyIn(CudaSlot):
    """Fault: the input never reaches the device."""

    def _queue(self, driver: Any, shape: BatchShape) -> None:
        class NoCopyIn:
            def __getattr__(self, name: str) -> Any:
                return (lambda *_: None) if name == "memcpy_htod_async" else getattr(driver, name)

        super()._queue(NoCopyIn(), shape)


@pytest.mark.parametrize("kind", [WithoutWait, RefillsTooEarly, StaleAddress, WithoutCopyIn])
def test_a_planted_fault_gives_wrong_masks_every_time(
    kind: type[CudaSlot], session: onnxruntime.InferenceSession
) -> None:
    device = CudaDevice()
    slots = make_slots(device, session, 2, kind)
    assert drive(slots, session, 20, seed=3) >= 15
    with device.current() as module:
        module.Context.synchronize()
    for slot in slots:
        slot.close()
    device.close()
    driver.lazy_freed_in_flight()


def test_a_context_that_is_not_popped_is_seen(device: CudaDevice) -> None:
    with device.current() as module:
        assert driver.lazy_context_depth() == 1
    assert driver.lazy_context_depth() == 0
    device._context.push()
    assert driver.lazy_context_depth() == 1
    module.Context.pop()
