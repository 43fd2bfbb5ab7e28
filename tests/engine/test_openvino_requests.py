"""OpenVINO's requests: made before anything runs, held by one slot at a time, used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import steel
from unetrt.contract.types import U8
from unetrt.engine.base import Slot
from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import CompiledShape, OpenVinoEngine

SIZE = (32, 48)


@pytest.fixture
def engine(exported: Callable[..., Path]) -> Iterator[OpenVinoEngine]:
    with open_engine(exported(), "openvino", threads=1) as engine:
        assert isinstance(engine, OpenVinoEngine)
        yield engine


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that are made, as they come."""
    found: list[Any] = []
    real = CompiledShape.__init__

    class Counted:
        def __init__(self, model: Any) -> None:
            self.model = model

        def create_infer_request(self) -> Any:
            found.append(self.model.create_infer_request())
            return found[-1]

    def init(self: CompiledShape, model: Any, requests: int) -> None:
        real(self, Counted(model), requests)

    monkeypatch.setattr(CompiledShape, "__init__", init)
    return found


def all_slots(engine: OpenVinoEngine) -> int:
    """What a job of quick batches has."""
    return engine.slots + engine.spare_slots


def start(slot: Slot, image: U8) -> None:
    slot.reserve(1, SIZE)[0] = image
    slot.submit(1, SIZE)


def mask_of(engine: OpenVinoEngine, image: U8) -> U8:
    with closing(engine.slot()) as slot:
        start(slot, image)
        return slot.masks()[0].copy()


def test_slots_that_come_and_go_use_the_requests_of_the_first(
    engine: OpenVinoEngine, made: list[Any]
) -> None:
    images = [steel(index, *SIZE) for index in range(6)]
    expected = [mask_of(engine, image) for image in images]
    assert len(made) == all_slots(engine), (
        "all before the first batch: to make one waits for what runs"
    )
    for _ in range(3):
        slots = [engine.slot() for _ in range(engine.slots)]
        for first in range(0, len(images), len(slots)):
            part = images[first : first + len(slots)]
            for slot, image in zip(slots, part, strict=False):
                start(slot, image)
            found = [slot.masks()[0] for slot, _ in zip(slots, part, strict=False)]
            np.testing.assert_array_equal(found, expected[first : first + len(slots)])
        for slot in slots:
            slot.close()
    assert len(made) == all_slots(engine)


def test_more_slots_than_requests_make_their_own(engine: OpenVinoEngine, made: list[Any]) -> None:
    images = [steel(index, *SIZE) for index in range(engine.slots + 3)]
    expected = [mask_of(engine, image) for image in images]
    slots = [engine.slot() for _ in images]
    for slot, image in zip(slots, images, strict=True):
        start(slot, image)
    np.testing.assert_array_equal([slot.masks()[0] for slot in slots], expected)
    assert len(made) == len(slots)
    for slot in slots:
        slot.close()
        slot.close()  # twice gives nothing back twice
    assert mask_of(engine, images[0]).shape == SIZE
    assert len(made) == len(slots)


def test_a_request_dropped_in_flight_is_not_bound_while_it_runs(
    engine: OpenVinoEngine, made: list[Any]
) -> None:
    """Its batch would read the next slot's image, or write into its masks."""
    images = [steel(index, *SIZE) for index in range(8)]
    expected = [mask_of(engine, image) for image in images]
    for image, mask in zip(images, expected, strict=True):
        dropped = engine.slot()
        start(dropped, images[0])
        dropped.close()
        np.testing.assert_array_equal(mask_of(engine, image), mask)
    assert len(made) == all_slots(engine)


def test_a_request_that_has_failed_is_not_used_again(
    engine: OpenVinoEngine, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = steel(0, *SIZE)
    expected = mask_of(engine, image)
    slot = engine.slot()
    start(slot, image)
    slot.masks()

    def fails() -> None:
        raise RuntimeError("the batch has failed")

    monkeypatch.setattr(slot, "_request", type("Request", (), {"wait": staticmethod(fails)})())
    slot.close()
    for _ in range(2 * engine.slots):
        np.testing.assert_array_equal(mask_of(engine, image), expected)


def test_a_slot_of_another_shape_gives_its_request_back(
    engine: OpenVinoEngine, made: list[Any]
) -> None:
    with closing(engine.slot()) as slot:
        for _ in range(3):
            for size in (SIZE, (48, 32)):
                slot.reserve(1, size)[0] = steel(0, *size)
                slot.submit(1, size)
                assert slot.masks().shape == (1, *size)
    assert len(made) == 2 * all_slots(engine)
