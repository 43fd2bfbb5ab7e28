"""Cases for images that a slot runs on where they lie; run as lazy_cases.py is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import expected, pictures
from tests.cuda.lazy_memory import SIZES, LazyEngine, Session
from tests.runtime.conftest import decoded
from unetrt.contract.errors import DeviceMemoryError
from unetrt.contract.types import U8
from unetrt.engine.base import Engine, Memory, Slot
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.cuda_buffers import PinnedMemory
from unetrt.engine.cuda_device import CudaDevice
from unetrt.runtime.loading import Loaded
from unetrt.runtime.pages import Pages
from unetrt.runtime.pipeline import PipelineOptions, run_pipeline


class WatchedSlot(CudaSlot):
    """used: batches that ran where they lay."""

    used = 0

    def use(self, images: U8) -> None:
        WatchedSlot.used += 1
        super().use(images)


class PagedEngine(LazyEngine):
    """Its pages are page-locked."""

    def slot(self) -> Slot:
        return WatchedSlot(self._cuda, 1, OnnxKernel(self._session))

    def memory(self) -> Memory:
        return PinnedMemory(self._cuda)


def wrong_masks(engine: Engine, session: Session, count: int, sizes: int) -> int:
    """Of images of so many sizes, each written by a load thread."""
    images = {
        i: pictures(np.random.default_rng(i), 1, SIZES[i // 16 % sizes])[0] for i in range(count)
    }
    masks: dict[int, U8] = {}

    def load(index: int) -> Loaded:
        image = images[index]
        return image, (image.shape[0], image.shape[1])

    WatchedSlot.used = 0
    options = PipelineOptions(load_threads=3)
    for result in run_pipeline(engine, images, decoded(load), masks.__setitem__, options):
        assert result.error is None
    wrong = 0
    for index, image in images.items():
        size = (image.shape[0], image.shape[1])
        wrong += not np.array_equal(masks[index], expected(session, image[None], size)[0])
    return wrong


@pytest.mark.parametrize("batch", [1, 4])
def test_a_job_runs_on_pinned_pages(batch: int, device: CudaDevice, session: Session) -> None:
    engine = PagedEngine(device, session, batch)
    assert wrong_masks(engine, session, 400, sizes=1) == 0
    assert WatchedSlot.used >= (400 - 40) // batch
    assert wrong_masks(engine, session, 400, sizes=2) == 0
    assert WatchedSlot.used > 0


def test_a_graph_is_replayed_wherever_the_images_lie(device: CudaDevice, session: Session) -> None:
    slot, pages = CudaSlot(device, 1, OnnxKernel(session)), PinnedMemory(device)
    page = pages.view((6, *SIZES[0], 1))
    rng, launches = np.random.default_rng(0), driver.lazy_graph_launches()
    for turn in range(12):
        images = page[turn % 3 * 2 : turn % 3 * 2 + 2]
        images[:] = pictures(rng, 2, SIZES[0])
        slot.use(images)
        slot.submit(2, SIZES[0])
        assert np.array_equal(slot.masks(), expected(session, images, SIZES[0]))
    assert driver.lazy_graph_launches() - launches == 11
    slot.close()
    pages.free()
    pages.free()


def test_a_row_that_is_given_back_too_early_gives_wrong_masks(
    device: CudaDevice, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a page is filled again while its copy to the device is queued."""
    take = Pages.take

    def early(pages: Pages, key: Any) -> Any:
        for page in list(pages._all):
            if page.sealed and page not in pages._idle:  # it is in flight
                page.images[:] = 0
        return take(pages, key)

    monkeypatch.setattr(Pages, "take", early)
    assert wrong_masks(PagedEngine(device, session, 4), session, 200, sizes=1) > 20


def test_pages_of_sizes_that_grow_leave_no_pinned_memory(
    device: CudaDevice, session: Session
) -> None:
    before = driver.lazy_pinned_used()
    with Pages(PagedEngine(device, session, 4), most_bytes=100_000) as pages:
        pages.most = 3
        for side in range(8, 150, 8):
            key = ((side, side), (side, side))
            pages.expect(key, 4)

            def work(key: Any = key) -> None:
                pages.give_back([pages.take(key) for _ in range(12)])

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            assert driver.lazy_pinned_used() - before <= 100_000
        assert driver.lazy_pinned_used() > before
    assert driver.lazy_pinned_used() == before


def test_memory_that_cannot_be_pinned_is_told(device: CudaDevice) -> None:
    with pytest.raises(DeviceMemoryError, match="pin memory"):
        PinnedMemory(device).view((1 << 50, 8, 8, 1))
