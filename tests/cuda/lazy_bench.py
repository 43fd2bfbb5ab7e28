"""Cases for the bench's clock on the lazy host driver; test_cuda_slot.py runs them in a process."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import expected, pictures
from unetrt.bench.cuda_clock import copies_rate, cuda_slots, network_rate
from unetrt.bench.engine_clock import EngineClock
from unetrt.bench.filled import Batch, FilledSlots
from unetrt.bench.job import RowJob
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.base import Engine
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.cuda_device import CudaDevice

Session = onnxruntime.InferenceSession
SIZE = (24, 16)
JOB = RowJob(
    name="x", model="", backend="", device="", images=[], outputs=[], seconds=0.01, repeats=2
)


class LazyEngine(Engine):
    backend, precision, device = "lazy", "fp32", "a device (cuda:0)"

    def __init__(self, device: CudaDevice, session: Session) -> None:
        super().__init__(ModelSpec(channels=1))
        self._cuda, self._session = device, session
        self.made: list[CudaSlot] = []

    def slot(self) -> CudaSlot:
        self.made.append(CudaSlot(self._cuda, 1, OnnxKernel(self._session)))
        return self.made[-1]


def batch_of(count: int) -> Batch:
    return Batch(list(pictures(np.random.default_rng(0), count, SIZE)), SIZE)


def test_rates_are_taken_between_marks_on_drained_streams(
    device: CudaDevice, session: Session
) -> None:
    engine, batch = LazyEngine(device, session), batch_of(2)
    with FilledSlots(engine, batch, 3) as slots:
        assert len(cuda_slots(slots)) == 3
        assert copies_rate(slots, 0.01) > 0
        forced = driver.lazy_forced()
        for slot in engine.made:
            slot.reach(slot.mark())
        assert driver.lazy_forced() == forced + 3, "nothing but the marks was left to run"
    rate = network_rate(engine, batch, 2, 0.01)
    assert rate is not None
    assert rate > 0
    clock = EngineClock(engine, batch, 2, JOB)
    for _ in range(2):
        clock.measure()
    assert len(clock.engine_only) == len(clock.with_copies) == 2
    fastest = sum(max(clock.engine_only[i], clock.with_copies[i]) for i in range(2))
    assert clock.shares([fastest / 2]) == pytest.approx([1.0]), "against the faster region"
    assert driver.lazy_streams() == 3, "taken again, and kept for the next"


def test_the_network_alone_leaves_the_masks_as_they_are(
    device: CudaDevice, session: Session
) -> None:
    images = pictures(np.random.default_rng(1), 2, SIZE)
    slot = LazyEngine(device, session).slot()
    slot.reserve(2, SIZE)[:] = images
    slot.submit(2, SIZE)
    slot.masks()
    forced = driver.lazy_forced()
    slot.queue_network()
    slot.reach(slot.mark())
    assert driver.lazy_forced() == forced + 2, "the network and the mark, no copies"
    slot.submit(2, SIZE)
    np.testing.assert_array_equal(slot.masks(), expected(session, images, SIZE))
    slot.close()


def test_a_mark_that_was_not_reached_has_no_time(device: CudaDevice, session: Session) -> None:
    slot = LazyEngine(device, session).slot()
    slot.reserve(1, SIZE)[:] = 0
    slot.submit(1, SIZE)
    slot.masks()
    first, last = slot.mark(), slot.mark()
    with pytest.raises(UserError, match="read its clock"):
        slot.seconds_between(first, last)
    slot.reach(last)
    assert slot.seconds_between(first, last) >= 0
    slot.close()
