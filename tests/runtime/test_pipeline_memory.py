"""A device without the memory for a batch: a smaller one is tried, and nothing is lost."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import ThresholdEngine
from unetrt.contract.errors import DeviceMemoryError, UserError
from unetrt.contract.types import U8
from unetrt.engine.base import Engine, HostBuffer, Slot, memory_errors
from unetrt.engine.host import HostSlot
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime import pipeline
from unetrt.runtime.pipeline import Loaded, PipelineOptions, run_pipeline
from unetrt.training.checkpoint import unet_from_checkpoint
from unetrt.training.masknet import MaskNet

SIZES = ((32, 32), (48, 33))


def load(index: int) -> Loaded:
    size = SIZES[index % 3 % 2]
    return steel(index, *size), size


class SmallDevice(MaskNet):
    """PyTorch's own error for more images than fit."""

    most = 2

    def forward(self, image: Tensor, size_like: Tensor) -> Tensor:
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee also")
        return super().forward(image, size_like)


def small_engine(most: int, batch: int) -> TorchEngine:
    checkpoint = balanced_checkpoint()
    net = SmallDevice(unet_from_checkpoint(checkpoint), checkpoint.spec)
    net.most = most
    engine = TorchEngine(checkpoint, "cpu", net)
    engine.batch = batch
    return engine


def masks_of(engine: Engine, count: int, options: PipelineOptions | None = None) -> dict[int, U8]:
    masks: dict[int, U8] = {}
    results = list(run_pipeline(engine, range(count), load, masks.__setitem__, options))
    assert sorted(result.task for result in results) == list(range(count))
    assert not any(result.error for result in results)
    return masks


@pytest.mark.parametrize("waiting", [1, 64])
def test_the_batch_is_halved_until_it_fits(waiting: int, caplog: pytest.LogCaptureFixture) -> None:
    with small_engine(most=2, batch=8) as engine, caplog.at_level(logging.WARNING):
        masks = masks_of(engine, 37, PipelineOptions(waiting=waiting, slots=3))
    said = [record.getMessage() for record in caplog.records]
    assert [message.rsplit(": ", 1)[1] for message in said] == [
        "from now on 4 images a batch",
        "from now on 2 images a batch",
    ]
    assert "Tried to allocate 9 GiB" in said[0]
    assert "images (8, " in said[0]
    with small_engine(most=2, batch=2) as engine:
        expected = masks_of(engine, 37)
    for index, mask in expected.items():
        np.testing.assert_array_equal(masks[index], mask)


def test_an_image_that_never_fits_ends_the_job() -> None:
    with (
        small_engine(most=0, batch=4) as engine,
        pytest.raises(DeviceMemoryError, match=r"no memory for images \(1, "),
    ):
        masks_of(engine, 5)


class Varied(SmallDevice):
    """Room for `most` images of 32 rows, and for none of more."""

    def forward(self, image: Tensor, size_like: Tensor) -> Tensor:
        if len(image) > self.most or image.shape[1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return MaskNet.forward(self, image, size_like)


def varied_engine(most: int, batch: int) -> TorchEngine:
    checkpoint = balanced_checkpoint()
    net = Varied(unet_from_checkpoint(checkpoint), checkpoint.spec)
    net.most = most
    engine = TorchEngine(checkpoint, "cpu", net)
    engine.batch = batch
    return engine


@pytest.mark.parametrize("large", [{0}, {0, 1, 2, 3}, {20}, {4, 5, 30, 39}])
def test_an_image_too_large_for_the_device_costs_itself_alone(
    large: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    def of_two_sizes(index: int) -> Loaded:
        size = (48, 33) if index in large else (32, 32)
        return steel(index, *size), size

    with varied_engine(most=4, batch=4) as engine, caplog.at_level(logging.WARNING):
        masks: dict[int, U8] = {}
        results = list(run_pipeline(engine, range(40), of_two_sizes, masks.__setitem__))
    failed = {result.task: result.reason for result in results if result.error}
    assert set(failed) == large
    assert len(results) == 40
    assert sorted(masks) == [index for index in range(40) if index not in large]
    assert all("no memory for an image of 48×33 pixels" in text for text in failed.values())
    assert "cut it into smaller images" in failed[min(large)]
    assert "for the others 4 images a batch again" in caplog.text


def test_where_nothing_ever_fits_the_job_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_UNFIT", 6)
    loaded: list[int] = []

    def counted(index: int) -> Loaded:
        loaded.append(index)
        return load(index)

    options = PipelineOptions(load_threads=1, batch=1, slots=1)
    with small_engine(most=0, batch=1) as engine, pytest.raises(DeviceMemoryError):
        list(run_pipeline(engine, range(500), counted, lambda _task, _mask: None, options))
    assert len(loaded) < 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 8"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("Exception from src:\nFailed to allocate 64032920 bytes of memory\n\n"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("Exception from plugin.cpp:54:\nstd::future_error: Broken promise\n\n"),
    ],
)
def test_what_libraries_say_without_memory_is_known(error: Exception) -> None:
    """The words of ONNX Runtime, PyTorch and OpenVINO."""
    with (
        pytest.raises(DeviceMemoryError, match="no memory for a batch") as caught,
        memory_errors("a batch"),
    ):
        raise error
    assert caught.value.seen
    assert caught.value.hint


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shapes differ"), UserError("out of memory, as a user has it")):
        with pytest.raises(type(error)) as caught, memory_errors("a batch"):
            raise error
        assert caught.value is error


def test_a_buffer_that_the_host_has_no_memory_for_is_no_traceback() -> None:
    with pytest.raises(DeviceMemoryError, match="a buffer of"):
        HostBuffer().view((1 << 50, 8, 8, 3))


def test_no_batch_below_the_least_that_an_engine_takes() -> None:
    with small_engine(most=2, batch=8) as engine:
        engine.min_batch = 4
        with pytest.raises(DeviceMemoryError, match=r"\(4, "):
            masks_of(engine, 20)


class CrowdedEngine(ThresholdEngine):
    """Memory for `room` slots: their number counts, or that of those which hold a batch."""

    room = 1
    opened = 0

    def slot(self) -> Slot:
        self.opened += 1
        return CrowdedSlot(self)


class CrowdedSlot(HostSlot):
    def __init__(self, engine: CrowdedEngine) -> None:
        super().__init__(engine)
        self._owner = engine

    def submit(self, n: int, size: tuple[int, int]) -> None:
        if self._owner.opened > self._owner.room:
            raise DeviceMemoryError("no memory for a second one")
        super().submit(n, size)

    def close(self) -> None:
        self._owner.opened -= 1


def test_single_images_run_one_at_a_time_where_several_do_not_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with CrowdedEngine(batch=1, slots=3) as engine, caplog.at_level(logging.WARNING):
        assert len(masks_of(engine, 9)) == 9
    assert engine.opened == 0
    (record,) = caplog.records
    assert "from now on one batch at a time" in record.getMessage()


class FewSlots(ThresholdEngine):
    left = 2

    def slot(self) -> Slot:
        if not self.left:
            raise DeviceMemoryError("no memory for a context")
        self.left -= 1
        return super().slot()


def test_as_many_slots_as_the_device_has_memory_for(caplog: pytest.LogCaptureFixture) -> None:
    with FewSlots(slots=3) as engine, caplog.at_level(logging.WARNING):
        assert len(masks_of(engine, 9)) == 9
        assert "from now on 2 slots" in caplog.text
        with pytest.raises(DeviceMemoryError):
            masks_of(engine, 9)


def test_another_error_of_the_device_stops_and_says_where() -> None:
    class Broken(SmallDevice):
        def forward(self, image: Tensor, size_like: Tensor) -> Tensor:
            raise torch.AcceleratorError("CUDA error: an illegal memory access\nsee also")

    checkpoint = balanced_checkpoint()
    net = Broken(unet_from_checkpoint(checkpoint), checkpoint.spec)
    with TorchEngine(checkpoint, "cpu", net) as engine:
        with pytest.raises(UserError, match=r"on the device: images \(1, ") as caught:
            masks_of(engine, 3)
        assert caught.value.seen == "CUDA error: an illegal memory access"
