"""A series of images runs in one slot, which is closed whatever happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.conftest import balanced_checkpoint, steel
from unetrt.contract.errors import DeviceMemoryError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, HostBuffer, Slot
from unetrt.engine.manifest import GoldenCase
from unetrt.engine.open import golden_difference
from unetrt.engine.torch_backend import TorchEngine
from unetrt.export.gate import GateCase, GateOptions, judge_engine
from unetrt.runtime.fast_decode import measure_fast_decode
from unetrt.training.checkpoint import unet_from_checkpoint
from unetrt.training.masknet import MaskNet


class CountedSlot(Slot):
    """Masks of the images' first pixel; it counts itself and fails where it is told to."""

    def __init__(self, engine: CountingEngine) -> None:
        self._engine, self._buffer = engine, HostBuffer()
        self._images, self._closed = self._buffer.view((0, 0, 0, 1)), False
        engine.made += 1
        engine.open += 1

    def reserve(self, batch: int, size: Size) -> U8:
        self._images = self._buffer.view((batch, *size, 1))
        return self._images

    @property
    def images(self) -> U8:
        return self._images

    def submit(self, n: int, size: Size) -> None:
        if self._engine.fails:
            raise DeviceMemoryError("no")
        self._masks = np.stack([np.full(size, image[0, 0, 0] % 2) for image in self._images[:n]])

    def masks(self) -> U8:
        return self._masks.astype(np.uint8)

    def close(self) -> None:
        self._engine.open -= not self._closed
        self._closed = True


class CountingEngine(Engine):
    backend, precision, device, batch, graphs = "counting", "fp32", "cpu", 2, True

    def __init__(self) -> None:
        super().__init__(ModelSpec(channels=1, classes=2, scale=1.0))
        self.made = self.open = 0
        self.fails = False

    def slot(self) -> Slot:
        return CountedSlot(self)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


IMAGES = [steel(index, 24, 32) for index in range(6)]


def test_many_images_in_one_slot(engine: CountingEngine) -> None:
    with engine.running() as run:
        masks = [run(image, (5, 7)) for image in IMAGES]
        assert (engine.made, engine.open) == (1, 1)
    assert engine.open == 0
    for image, mask in zip(IMAGES, masks, strict=True):  # none is of a later image
        assert np.array_equal(mask, engine.run(image, (5, 7)))
        assert mask.shape == (5, 7)
    assert (engine.made, engine.open) == (1 + len(IMAGES), 0)


def test_it_is_closed_when_an_image_fails(engine: CountingEngine) -> None:
    engine.fails = True
    with pytest.raises(DeviceMemoryError), engine.running() as run:
        run(IMAGES[0], (5, 7))
    with pytest.raises(DeviceMemoryError):
        engine.run(IMAGES[0], (5, 7))
    assert engine.open == 0


def test_the_gate_makes_one_slot_of_each_engine() -> None:
    engines = [CountingEngine() for _ in range(3)]
    cases = [GateCase(image, (24, 32)) for image in IMAGES]
    judged = judge_engine(
        engines[0],
        engines[1],
        iter(cases),
        inputs="images",
        options=GateOptions(),
        rounded=engines[2],
    )
    assert judged.images == len(IMAGES)
    assert [(e.made, e.open) for e in engines] == [(1, 0)] * 3
    engines[1].fails = True
    with pytest.raises(DeviceMemoryError):
        judge_engine(*engines[:2], iter(cases), inputs="images", options=GateOptions())
    assert [e.open for e in engines] == [0] * 3


def test_golden_masks_are_replayed_in_two_slots(engine: CountingEngine) -> None:
    with engine.running() as run:
        cases = [GoldenCase(image, run(image, (24, 32))) for image in IMAGES]
    assert golden_difference(engine, cases).agreement == 1
    assert (engine.made, engine.open) == (3, 0)


def test_fast_decode_measures_in_one_slot(
    engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[Any] = [(image, image, (24, 32)) for image in IMAGES]
    monkeypatch.setattr("unetrt.runtime.fast_decode._both_inputs", lambda *_: pairs.pop())
    measured = measure_fast_decode(engine, [None] * len(IMAGES))  # type: ignore[list-item]
    assert measured.agreements == [1.0] * len(IMAGES)
    assert (engine.made, engine.open) == (1, 0)


def test_what_the_hosts_memory_would_not_take_is_run_in_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the gate's images are, which are as large as those of a job."""
    image, shapes = steel(3, 700, 40), []

    class Watched(MaskNet):
        def forward(self, images: Tensor, size_like: Tensor) -> Tensor:
            shapes.append(tuple(images.shape[1:3]))
            return super().forward(images, size_like)

    checkpoint = balanced_checkpoint()
    net = Watched(unet_from_checkpoint(checkpoint), checkpoint.spec)
    with TorchEngine(checkpoint, "cpu", net) as engine:
        expected = engine.run(image, (1400, 80))
        memory = 2 * engine.host_bytes((600, 40), (1200, 80))
        monkeypatch.setattr("unetrt.engine.base.memory_bytes", lambda: memory)
        found = engine.run(image, (1400, 80))
    assert shapes == [(700, 40), (492, 40), (492, 40)]
    assert np.mean(found != expected) <= 1e-4
