"""A job whose images are written where a slot runs on them: the same masks, none of them lost."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from tests.conftest import balanced_checkpoint
from tests.runtime import test_cut_images, test_pipeline_memory
from tests.runtime.conftest import ThresholdEngine, decoded, torch_engine
from tests.runtime.test_pipeline import SIZES, load_steel, run_all, run_alone
from unetrt.contract.errors import DeviceMemoryError, ImageError
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, HostBuffer, Memory, Slot
from unetrt.engine.host import HostSlot
from unetrt.runtime.loading import Decoded, Loaded
from unetrt.runtime.pipeline import Pipeline, PipelineOptions


class CountingSlot(HostSlot):
    """How often images were copied into it, and how often they ran as they lay."""

    copied = used = 0

    def reserve(self, batch: int, size: Size) -> U8:
        CountingSlot.copied += 1
        return super().reserve(batch, size)

    def use(self, images: U8) -> None:
        CountingSlot.used += 1
        super().use(images)


class CountingEngine(ThresholdEngine):
    def slot(self) -> Slot:
        CountingSlot.copied = CountingSlot.used = 0
        return CountingSlot(self)


def small(index: int) -> Loaded:
    """Of one size; the mask tells the index's last bit."""
    return np.full((4, 6, 1), index % 251, np.uint8), (4, 6)


def check_small(masks: dict[int, U8], count: int) -> None:
    assert sorted(masks) == list(range(count))
    assert all((mask == index % 251 % 2).all() for index, mask in masks.items())


@pytest.mark.parametrize("threads", [1, 3])
def test_all_but_the_first_images_run_where_they_were_written(threads: int) -> None:
    options = PipelineOptions(batch=4, slots=2, load_threads=threads)
    with CountingEngine() as engine:
        masks, errors = run_all(engine, list(range(400)), decoded(small), options)
    assert not any(errors.values())
    check_small(masks, 400)
    # Those that were being loaded before the first of their size was known, and the end.
    assert CountingSlot.copied <= 2 + (2 * threads + 8) // 4
    assert CountingSlot.used + CountingSlot.copied <= 100 + 3


def test_an_image_alone_in_its_batch_is_never_copied() -> None:
    options = PipelineOptions(batch=1, load_threads=2)
    with CountingEngine() as engine:
        for load in (small, decoded(small)):
            masks, _ = run_all(engine, list(range(50)), load, options)
            check_small(masks, 50)
            assert (CountingSlot.copied, CountingSlot.used) == (0, 50)


def test_what_may_not_be_written_or_lies_apart_is_copied() -> None:
    def load(index: int) -> Loaded:
        image, size = np.full((8, 6, 1), index % 251, np.uint8)[::2], (4, 6)
        if index % 2:
            image = image.copy()
            image.flags.writeable = False
        return image, size

    with CountingEngine() as engine:
        masks, _ = run_all(engine, list(range(20)), load, PipelineOptions(batch=1))
    check_small(masks, 20)
    assert CountingSlot.used == 0


@pytest.mark.parametrize(("batch", "slots", "waiting"), [(1, 1, 64), (3, 2, 64), (4, 3, 5)])
def test_masks_are_those_of_the_engine_alone(batch: int, slots: int, waiting: int) -> None:
    options = PipelineOptions(batch=batch, slots=slots, load_threads=3, waiting=waiting)
    with torch_engine(balanced_checkpoint()) as engine:
        masks, errors = run_all(engine, list(range(120)), decoded(load_steel), options)
        assert errors == dict.fromkeys(range(120))
        for index in range(0, 120, 7):
            image, size = load_steel(index)
            np.testing.assert_array_equal(masks[index], run_alone(engine, image, size, batch))
    assert {mask.shape for mask in masks.values()} == {size for _, size in SIZES}


@pytest.mark.parametrize("bad", [(0,), (7, 8, 9), tuple(range(3, 80, 5))])
def test_an_image_that_fails_as_it_is_written_costs_itself_alone(bad: tuple[int, ...]) -> None:
    def load(index: int) -> Loaded:
        found = decoded(small)(index)
        assert isinstance(found, Decoded)

        def resized(out: U8 | None) -> U8:
            if index in bad:
                if out is not None:
                    out[:] = 255
                raise ImageError("no memory for it")
            return found.resized(out)

        return Decoded(found.input_size, found.size, resized)

    with CountingEngine() as engine:
        options = PipelineOptions(batch=4, slots=2, load_threads=2)
        masks, errors = run_all(engine, list(range(100)), load, options)
    assert [index for index, error in sorted(errors.items()) if error] == list(bad)
    assert all((mask == index % 251 % 2).all() for index, mask in masks.items())
    assert len(masks) == 100 - len(bad)


def test_where_the_device_has_no_memory_for_a_batch_a_smaller_one_runs() -> None:
    with test_pipeline_memory.small_engine(most=2, batch=8) as engine:
        load = decoded(test_pipeline_memory.load)
        found, errors = run_all(engine, list(range(40)), load)
    assert not any(errors.values())
    with test_pipeline_memory.small_engine(most=2, batch=2) as engine:
        masks = test_pipeline_memory.masks_of(engine, 40)
    assert {i: m.tobytes() for i, m in found.items()} == {i: m.tobytes() for i, m in masks.items()}


def test_images_that_are_cut_by_now_keep_an_array_of_their_own() -> None:
    """They ran whole before, and lie on pages."""

    class Shrinking(ThresholdEngine):
        """From its tenth batch on it has no memory for an image as large."""

        batches = 0

        def infer(self, images: U8, masks: U8) -> None:
            self.batches += 1
            if self.batches > 10 and images.shape[1] > 800:
                raise DeviceMemoryError("no memory")
            masks[:] = images[..., 0] % 2

    def load(index: int) -> Loaded:
        return np.full((1024, 32, 1), index % 251, np.uint8), (1024, 32)

    with Shrinking(batch=4) as engine:
        masks, errors = run_all(engine, list(range(120)), decoded(load))
    assert not any(errors.values())
    assert sorted(masks) == list(range(120))
    assert all((mask == index % 251 % 2).all() for index, mask in masks.items())


def test_rows_that_come_after_their_page_was_sealed_run_with_others() -> None:
    """Many sizes in turn, and few may wait: pages run before they are full."""

    def load(index: int) -> Loaded:
        size = (4, 5 + index * 7 % 13)
        time.sleep(index % 5 / 2000)
        return np.full((*size, 1), index % 251, np.uint8), size

    options = PipelineOptions(batch=4, load_threads=4, waiting=8)
    with (
        CountingEngine() as engine,
        Pipeline(
            engine, decoded(load), lambda task, mask: masks.__setitem__(task, mask), options, bool
        ) as pipeline,
    ):
        masks: dict[int, U8] = {}
        for turn in range(3):
            masks.clear()
            assert not any(r.error for r in pipeline.run(iter(range(300))))
            assert all((mask == index % 251 % 2).all() for index, mask in masks.items())
            assert len(masks) == 300, turn
            assert all(page.held == 0 for page in pipeline.pages._all), "none is lost"
            assert len(pipeline.pages._idle) == len(pipeline.pages._all)
        assert CountingSlot.used > 0


def test_images_that_are_cut_keep_an_array_of_their_own() -> None:
    options = PipelineOptions(batch=2, tile=256)
    with torch_engine(balanced_checkpoint()) as engine:
        masks, errors = run_all(engine, list(range(12)), decoded(test_cut_images.mixed), options)
        whole, _ = test_cut_images.masks_of(engine, 12)
    assert not any(errors.values())
    test_cut_images.assert_same(masks, whole)


def test_a_job_that_stops_or_is_left_frees_its_pages() -> None:
    freed = Counter[str]()

    class Watched(HostBuffer):
        def __init__(self) -> None:
            super().__init__()
            freed["made"] += 1

        def free(self) -> None:
            freed["freed"] += 1
            super().free()

    class WatchedEngine(ThresholdEngine):
        def memory(self) -> Memory:
            return Watched()

    options = PipelineOptions(batch=4, load_threads=2)
    seen = threading.Event()

    def consume(task: int, mask: U8) -> None:
        del mask
        if task > 60:
            seen.set()

    with WatchedEngine() as engine:
        with Pipeline(engine, decoded(small), consume, options, seen.is_set) as pipeline:
            assert len(list(pipeline.run(iter(range(100_000))))) < 100_000
        assert freed["made"] == freed["freed"] > 0
        with Pipeline(engine, decoded(small), consume, options, lambda: False) as pipeline:
            stopped = freed["made"]
            run = pipeline.run(iter(range(1000)))
            assert len([next(run) for _ in range(100)]) == 100
        assert freed["made"] == freed["freed"] > stopped


def test_images_have_arrays_of_their_own_where_no_page_can_be_had() -> None:
    class Full(ThresholdEngine):
        def memory(self) -> Memory:
            raise DeviceMemoryError("nothing left to pin")

    def run(engine: Engine) -> dict[int, U8]:
        return run_all(engine, list(range(50)), decoded(small), PipelineOptions(batch=4))[0]

    with Full() as engine:
        check_small(run(engine), 50)
