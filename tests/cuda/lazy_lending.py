"""Cases for masks in memory that a slot has given away; run as lazy_cases.py is."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.cuda.lazy import driver
from tests.cuda.lazy_cases import expected, pictures
from tests.cuda.lazy_memory import SIZES, Session
from tests.cuda.lazy_pages import PagedEngine
from tests.runtime.conftest import decoded, end_loans_at_once
from unetrt.contract.types import U8
from unetrt.engine.base import Engine
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.cuda_device import CudaDevice
from unetrt.runtime import lending
from unetrt.runtime.loading import Loaded
from unetrt.runtime.pipeline import PipelineOptions, run_pipeline

pytestmark = pytest.mark.usefixtures("any_size")


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LEAST", 1)


def wrong_masks(engine: Engine, session: Session, count: int, sizes: int) -> int:
    """Of images of so many sizes, looked at by writers that take their time."""
    images = {
        i: pictures(np.random.default_rng(i), 1, SIZES[i // 16 % sizes])[0] for i in range(count)
    }
    wrong: list[int] = []
    lock = threading.Lock()

    def load(index: int) -> Loaded:
        image = images[index]
        return image, (image.shape[0], image.shape[1])

    def consume(index: int, mask: U8) -> None:
        time.sleep(index % 4 / 1000)
        image = images[index]
        truth = expected(session, image[None], (image.shape[0], image.shape[1]))[0]
        if not np.array_equal(mask, truth):
            with lock:
                wrong.append(index)

    options = PipelineOptions(load_threads=2, write_threads=3)
    for result in run_pipeline(engine, images, decoded(load), consume, options, lend=True):
        assert result.error is None
    return len(wrong)


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many numbers as memory was exchanged."""
    exchange, seen = CudaSlot.exchange, []

    def noted(slot: CudaSlot, memory: Any) -> Any:
        seen.append(len(seen))
        return exchange(slot, memory)

    monkeypatch.setattr(CudaSlot, "exchange", noted)
    return seen


@pytest.mark.parametrize(("batch", "sizes"), [(1, 1), (4, 1), (4, 2)])
def test_writers_use_masks_where_the_device_has_copied_them(
    batch: int, sizes: int, device: CudaDevice, session: Session, exchanged: list[int]
) -> None:
    before = driver.lazy_pinned_used()
    engine = PagedEngine(device, session, batch)
    assert wrong_masks(engine, session, 400, sizes) == 0
    assert len(exchanged) > 20
    assert driver.lazy_pinned_used() == before


def test_memory_that_is_given_back_too_early_gives_wrong_masks(
    device: CudaDevice, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_loans_at_once(monkeypatch)
    assert wrong_masks(PagedEngine(device, session, 4), session, 400, sizes=1) > 20
