"""Cases for a device that is full or broken, on the lazy host driver; run as lazy_cases.py is."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import expected, pictures
from unetrt.contract.errors import DeviceMemoryError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, Slot
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.cuda_device import CudaDevice
from unetrt.runtime.pipeline import run_pipeline

Session = onnxruntime.InferenceSession
SIZES: tuple[Size, ...] = ((24, 32), (40, 24))


class LazyEngine(Engine):
    backend, precision, device, slots = "lazy", "fp32", "cuda", 3

    def __init__(self, cuda: CudaDevice, session: Any, batch: int) -> None:
        super().__init__(ModelSpec(channels=1, classes=4, width=4, scale=1.0))
        self._cuda, self._session, self.batch = cuda, session, batch

    def slot(self) -> Slot:
        return CudaSlot(self._cuda, 1, OnnxKernel(self._session))


def test_a_job_goes_on_in_smaller_batches(
    device: CudaDevice,
    session: Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = {i: pictures(np.random.default_rng(i), 1, SIZES[i // 20 % 2])[0] for i in range(60)}
    masks: dict[int, U8] = {}
    # Input and masks of three slots of two of the larger images, but not of four.
    limit = 3 * (2 * 2 + 1) * 40 * 24
    driver.lazy_set_memory_limit(limit)
    try:
        results = run_pipeline(
            LazyEngine(device, session, batch=8),
            images,
            lambda i: (images[i], SIZES[i // 20 % 2]),
            masks.__setitem__,
        )
        with caplog.at_level(logging.WARNING):
            assert [result.error for result in results] == [None] * 60
    finally:
        driver.lazy_set_memory_limit(-1)
    said = [record.getMessage().rsplit(": ", 1)[1] for record in caplog.records]
    assert said == ["from now on 4 images a batch", "from now on 2 images a batch"]
    assert "out of memory" in caplog.text
    for index, image in images.items():
        size = SIZES[index // 20 % 2]
        assert np.array_equal(masks[index], expected(session, image[None], size)[0]), index


def test_an_image_that_never_fits_ends_the_job_and_frees_all(
    device: CudaDevice,
    session: Session,
) -> None:
    image = pictures(np.random.default_rng(0), 1, (24, 32))[0]
    driver.lazy_set_memory_limit(1000)
    try:
        results = run_pipeline(
            LazyEngine(device, session, batch=4),
            range(9),
            lambda _: (image, (24, 32)),
            lambda _task, _mask: None,
        )
        with pytest.raises(DeviceMemoryError, match=r"images \(1, 24, 32, 1\)"):
            list(results)
    finally:
        driver.lazy_set_memory_limit(-1)


class HoardingKernel(OnnxKernel):
    """Keeps memory for later, as PyTorch's pool does."""

    def __init__(self, session: Session, *kept: Any) -> None:
        super().__init__(session)
        self._kept = [*kept]

    def make_room(self) -> None:
        while self._kept:
            self._kept.pop().free()


def test_what_is_kept_for_later_makes_room_for_larger_buffers(
    device: CudaDevice,
    session: Session,
) -> None:
    rng, (small, large) = np.random.default_rng(0), SIZES
    with device.current() as module:
        slot = CudaSlot(device, 1, HoardingKernel(session, module.mem_alloc(10_000)))
    driver.lazy_set_memory_limit(driver.lazy_memory_used() + 3 * 24 * 32)
    try:
        for batch, size in ((1, small), (3, large), (1, small)):
            images = pictures(rng, batch, size)
            slot.reserve(batch, size)[:] = images
            slot.submit(batch, size)
            assert np.array_equal(slot.masks(), expected(session, images, size))
        slot.reserve(30, large)
        with pytest.raises(DeviceMemoryError):
            slot.submit(30, large)
    finally:
        driver.lazy_set_memory_limit(-1)
        slot.close()


class NamedKernel(OnnxKernel):
    name = "plan /models/steel/model.plan"


def test_another_error_names_plan_shape_and_stream(
    device: CudaDevice,
    session: Session,
) -> None:
    slot = CudaSlot(device, 1, NamedKernel(session))
    images = pictures(np.random.default_rng(0), 2, (24, 32))
    slot.reserve(2, (24, 32))[:] = images
    slot.submit(2, (48, 64))
    driver.lazy_break_waits(1)
    try:
        with pytest.raises(UserError) as caught:
            slot.masks()
        assert not isinstance(caught.value, DeviceMemoryError)
        assert "illegal memory access" in str(caught.value.seen)
        for part in ("(2, 24, 32, 1)", "(2, 48, 64)", "plan /models/steel/model.plan", "stream 0x"):
            assert part in caught.value.message
        slot.submit(2, (48, 64))
    finally:
        slot.close()  # hides no error, though its own wait fails
        driver.lazy_break_waits(0)
    with device.current() as module:
        module.Context.synchronize()
    driver.lazy_freed_in_flight()
