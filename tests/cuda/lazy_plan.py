"""Cases for what runs a TensorRT plan, on a stand-in for TensorRT's execution context.

The stand-in keeps TensorRT's rules: it runs with the shapes, the addresses and the profile that
were set last, and says False for what its profile does not hold. Run as lazy_cases.py is.
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import SHAPES, drive, expected, pictures
from unetrt.contract.errors import UserError
from unetrt.engine import cuda_graph
from unetrt.engine.cuda import BatchShape, CudaSlot
from unetrt.engine.cuda_device import CudaDevice
from unetrt.engine.tensorrt_backend import PlanKernel
from unetrt.engine.tensorrt_contexts import Contexts

Session = onnxruntime.InferenceSession
Shape = tuple[int, ...]

PROFILES: list[dict[str, tuple[Shape, Shape]]] = [
    {"image": ((1, 16, 16, 1), (4, 24, 20, 1)), "size_like": ((16, 16), (48, 40))},
    {"image": ((1, 33, 17, 1), (2, 33, 17, 1)), "size_like": ((33, 17), (33, 17))},
]


class Context:
    """What execute_async_v3 queues is what was set by then."""

    def __init__(self, plan: Plan) -> None:
        self._kernel = OnnxKernel(plan.session)
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._profile = 0
        self.profiler: Any = None
        self.refuses = ""
        self.calls = 0
        self.capturable = True
        self.asked = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._shapes = index, {}
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.calls += 1
        if name == self.refuses:
            return False
        least, most = PROFILES[self._profile][name]
        if not all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls += 1
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if len(self._shapes) < 2 or len(self._addresses) < 3:
            return False
        batch, height, width, channels = self._shapes["image"]
        rows, columns = self._shapes["size_like"]
        shape = BatchShape(batch, (height, width), channels, (rows, columns))
        places = (self._addresses[name] for name in ("image", "size_like", "mask"))
        self._kernel.enqueue(shape, *places, stream)
        return True


class RtxContext(Context):
    """TensorRT-RTX's: it tells whether it can be captured."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert len(self._shapes) == 2, "asked before a shape was set"
        self.asked += 1
        return self.capturable


class Plan:
    num_optimization_profiles = len(PROFILES)
    kind = Context

    def __init__(self, session: Session) -> None:
        self.session = session
        self.contexts: list[Context] = []

    def create_execution_context(self) -> Context:
        self.contexts.append(self.kind(self))
        return self.contexts[-1]

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[Shape, Shape, Shape]:
        least, most = PROFILES[index][name]
        return least, most, most


class RtxPlan(Plan):
    kind = RtxContext


class Logger:
    def __init__(self) -> None:
        self.messages: list[str] = []


def plan_slots(
    device: CudaDevice, session: Session, count: int, kind: type[Plan] = Plan
) -> tuple[Plan, list[CudaSlot]]:
    plan = kind(session)
    contexts = Contexts(None, plan, Logger())
    kernels = [PlanKernel(contexts, "model.plan") for _ in range(count)]
    return plan, [CudaSlot(device, 1, kernel) for kernel in kernels]


def test_masks_are_right_over_shapes_and_profiles(device: CudaDevice, session: Session) -> None:
    _, slots = plan_slots(device, session, 3)
    assert drive(slots, session, 300, seed=5) == 0
    assert drive(slots, session, 60, seed=6, shapes=(1,)) == 0
    assert driver.lazy_graph_launches() > 0, "a shape that repeats is replayed"
    for slot in slots:
        slot.close()


def test_what_tensorrt_says_can_be_captured_is(device: CudaDevice, session: Session) -> None:
    plan, (slot,) = plan_slots(device, session, 1, RtxPlan)
    before = driver.lazy_graph_launches()
    assert drive([slot], session, 12, seed=13, shapes=(0,)) == 0
    assert driver.lazy_graph_launches() - before == 11
    assert plan.contexts[0].asked == 1, "once for a shape"
    slot.close()


def test_what_tensorrt_says_cannot_be_captured_runs_as_it_is_and_says_why_once(
    device: CudaDevice, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    cuda_graph._say_once.cache_clear()
    plan, slots = plan_slots(device, session, 2, RtxPlan)
    before = driver.lazy_graph_launches()
    with caplog.at_level(logging.WARNING):
        assert drive(slots[:1], session, 4, seed=14, shapes=(0,)) == 0
        assert driver.lazy_graph_launches() - before == 3
        for context in plan.contexts:
            context.capturable = False
        assert drive(slots, session, 40, seed=15, shapes=(3, 3, 3, 3, 0, 0, 0, 0)) == 0
    assert driver.lazy_graph_launches() - before == 3
    said = [record.message for record in caplog.records if "no CUDA graph" in record.message]
    assert len(said) == 1
    assert "plan model.plan cannot be captured" in said[0]
    for slot in slots:
        slot.close()


def test_a_closed_kernel_holds_neither_context_nor_plan(
    device: CudaDevice, session: Session
) -> None:
    plan, (slot,) = plan_slots(device, session, 1)
    of_plan, of_context = weakref.ref(plan), weakref.ref(plan.contexts.pop())
    kernel = slot._kernel
    slot.close()
    del plan
    gc.collect()
    assert (of_plan(), of_context()) == (None, None)
    kernel.close()


def test_nothing_is_set_anew_for_the_same_shape(device: CudaDevice, session: Session) -> None:
    plan, (slot,) = plan_slots(device, session, 1)
    slot._replay.refused = "graphs would hide the calls"
    drive([slot], session, 3, seed=7, shapes=(0,))
    before = plan.contexts[0].calls
    drive([slot], session, 10, seed=8, shapes=(0,))
    assert plan.contexts[0].calls == before
    slot.close()


def test_a_shape_of_which_the_half_was_taken_is_set_anew(
    device: CudaDevice, session: Session
) -> None:
    plan, (slot,) = plan_slots(device, session, 1)
    assert drive([slot], session, 2, seed=9, shapes=(0,)) == 0
    plan.contexts[0].refuses = "size_like"
    batch, input_size, mask_size = SHAPES[1]
    slot.reserve(batch, input_size)[:] = 0
    with pytest.raises(UserError, match="set the shape of size_like"):
        slot.submit(batch, mask_size)
    plan.contexts[0].refuses = ""
    assert drive([slot], session, 4, seed=10, shapes=(0,)) == 0
    slot.close()


def test_an_address_that_is_not_set_anew_gives_wrong_masks(session: Session) -> None:
    """The fault that the kernel's own check keeps away: planted, it shows."""
    device = CudaDevice()
    _, (slot,) = plan_slots(device, session, 1)
    rng = np.random.default_rng(11)
    for shape in (0, 3):
        batch, input_size, mask_size = SHAPES[shape]
        images = pictures(rng, batch, input_size)
        slot.reserve(batch, input_size)[:] = images
        kernel: Any = slot._kernel
        if shape == 3:  # larger buffers: as if the old addresses still held
            place = np.zeros(1 << 16, np.uint8)
            kernel._context.set_tensor_address = lambda name, address: True
            kernel._context._addresses["mask"] = place.ctypes.data
        slot.submit(batch, mask_size)
        right = np.array_equal(slot.masks(), expected(session, images, mask_size))
        assert right == (shape == 0)
    slot.close()
    device.close()


def test_a_shape_outside_every_profile_names_them(device: CudaDevice, session: Session) -> None:
    _, (slot,) = plan_slots(device, session, 1)
    slot.reserve(1, (64, 64))[:] = 0
    with pytest.raises(UserError, match="not built for this shape") as caught:
        slot.submit(1, (64, 64))
    assert "adds a profile" in str(caught.value.hint)
    assert drive([slot], session, 4, seed=12) == 0, "the slot goes on"
    slot.close()
