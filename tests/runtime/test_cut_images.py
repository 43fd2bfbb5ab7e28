"""What is too large for one run is cut: by request, for the memory, for a plan's profiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import ThresholdEngine, WatchedEngine
from unetrt.contract.errors import ImageError
from unetrt.contract.spec import ModelSpec, Result
from unetrt.contract.tiles import GRAIN, LEAST_SIDE
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime.budget import NETWORK
from unetrt.runtime.cutter import Cutter
from unetrt.runtime.pipeline import Loaded, PipelineOptions, run_pipeline
from unetrt.training.checkpoint import unet_from_checkpoint
from unetrt.training.masknet import MaskNet

LARGE, SMALL = (700, 32), (32, 32)


def mixed(index: int) -> Loaded:
    """Every third image is a large one."""
    size = LARGE if index % 3 == 1 else SMALL
    return steel(index, *size), size


def masks_of(
    engine: Engine, count: int, options: PipelineOptions | None = None
) -> tuple[dict[int, U8], dict[int, str]]:
    """Of mixed(0), mixed(1) …, and why others failed."""
    masks: dict[int, U8] = {}
    results = list(run_pipeline(engine, range(count), mixed, masks.__setitem__, options))
    assert sorted(result.task for result in results) == list(range(count))
    return masks, {result.task: result.reason for result in results if result.error}


@pytest.fixture(scope="module")
def expected() -> dict[int, U8]:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        masks, failed = masks_of(engine, 12)
    assert not failed
    return masks


def assert_same(masks: dict[int, U8], expected: dict[int, U8]) -> None:
    assert sorted(masks) == sorted(expected)
    for index, mask in expected.items():
        assert np.mean(masks[index] != mask) <= 1e-4  # sums may be added up in another order
        assert masks[index].shape == mask.shape


class Limited(MaskNet):
    """PyTorch's own error for more pixels than fit; shapes: what ran."""

    most = 0
    shapes: list[Size]

    def forward(self, image: Tensor, size_like: Tensor) -> Tensor:
        if image.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.shapes.append((image.shape[1], image.shape[2]))
        return super().forward(image, size_like)


def limited_engine(most: int, batch: int = 1, bilinear: bool = False) -> TorchEngine:
    checkpoint = balanced_checkpoint(bilinear=bilinear)
    net = Limited(unet_from_checkpoint(checkpoint), checkpoint.spec)
    net.most, net.shapes = most, []
    engine = TorchEngine(checkpoint, "cpu", net)
    engine.batch = batch
    return engine


@pytest.mark.parametrize("batch", [1, 4])
def test_by_request(batch: int, expected: dict[int, U8], caplog: pytest.LogCaptureFixture) -> None:
    options = PipelineOptions(tile=512, batch=batch)
    with limited_engine(1 << 30) as engine, caplog.at_level(logging.INFO):
        masks, failed = masks_of(engine, 12, options)
        assert not failed
        assert_same(masks, expected)
        assert set(engine._net.shapes) == {SMALL, (492, 32)}  # type: ignore[attr-defined]
    assert not caplog.records


@pytest.mark.parametrize(("most", "batch"), [(600 * 32, 1), (600 * 32, 4)])
def test_where_the_device_has_no_memory_for_the_whole(
    most: int, batch: int, expected: dict[int, U8], caplog: pytest.LogCaptureFixture
) -> None:
    """Found out as it goes, and nothing is lost."""
    with limited_engine(most, batch) as engine, caplog.at_level(logging.WARNING):
        masks, failed = masks_of(engine, 12)
        assert not failed
        assert_same(masks, expected)
        assert LARGE not in engine._net.shapes  # type: ignore[attr-defined]
    assert "overlapping tiles" in caplog.text


def test_what_cannot_be_cut_that_small_costs_itself_alone(expected: dict[int, U8]) -> None:
    with limited_engine(100 * 32) as engine:
        masks, failed = masks_of(engine, 12)
    assert sorted(failed) == [1, 4, 7, 10]
    assert all("no memory for an image of 700×32 pixels" in reason for reason in failed.values())
    assert_same(masks, {i: mask for i, mask in expected.items() if i not in failed})


def test_a_network_whose_masks_depend_on_the_whole_is_not_cut() -> None:
    with limited_engine(600 * 32, bilinear=True) as engine:
        _, failed = masks_of(engine, 6)
    assert sorted(failed) == [1, 4]


class Host(ThresholdEngine):
    """Knows what a pixel takes of the host's memory."""

    pixel_bytes = 100


WHOLE = (2000, 1000)


def test_what_the_hosts_memory_would_not_take_is_not_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Linux gives memory that it has not, and kills who uses it."""
    with Host() as engine, caplog.at_level(logging.WARNING):
        memory = engine.host_bytes(WHOLE, WHOLE) // 4 // NETWORK
        cutter = Cutter(engine, None, 1, memory)
        assert cutter.grid(SMALL, SMALL) is None
        for _ in range(2):
            grid = cutter.grid(WHOLE, WHOLE)
            assert grid is not None
            assert engine.host_bytes(grid.input_size, grid.mask_size) <= NETWORK * memory
        assert len(caplog.records) == 1
        assert Cutter(engine, None, 2, 2 * memory).grid(WHOLE, WHOLE) == grid
        engine.streams = 2
        assert Cutter(engine, None, 1, 2 * memory).grid(WHOLE, WHOLE) == grid


@pytest.mark.parametrize(
    ("classes", "size", "result"),
    [(20, WHOLE, "mask"), (2, (4000, 2000), "mask"), (2, WHOLE, "prob")],
)
def test_resized_logits_count_as_well(classes: int, size: Size, result: Result) -> None:
    with Host() as engine:
        memory = engine.host_bytes(WHOLE, WHOLE) // NETWORK + 1
        assert Cutter(engine, None, 1, memory).grid(WHOLE, WHOLE) is None
        engine.spec = ModelSpec(channels=1, classes=classes, width=1, scale=1.0, result=result)
        grid = Cutter(engine, None, 1, memory).grid(WHOLE, size)
        assert grid is not None
        assert engine.host_bytes(grid.input_size, grid.mask_size) <= NETWORK * memory


def test_where_hardly_any_memory_is_the_smallest_tiles_are_tried() -> None:
    """And not the whole, which would be killed for sure."""
    with Host() as engine:
        cutter = Cutter(engine, None, 64, 1 << 20)
        grid = cutter.grid(WHOLE, WHOLE)
        assert grid is not None
        assert max(grid.input_size) <= LEAST_SIDE + GRAIN
        assert cutter.grid((400, 400), (400, 400)) is None


class Plan(ThresholdEngine):
    """Takes what its profiles hold, as TensorRT's plans do."""

    ranges: tuple[tuple[Size, Size], ...] = ()

    def refusal(self, input_size: Size, size: Size) -> ImageError | None:
        for least, most in self.ranges:
            ends = zip(least, input_size, most, strict=True)
            if all(low <= side <= high for low, side, high in ends):
                return None
        return ImageError("no profile")

    @classmethod
    def of(cls, *ranges: tuple[Size, Size]) -> Plan:
        plan = cls()
        plan.ranges, plan.largest = ranges, [most for _, most in ranges]
        return plan


@pytest.mark.parametrize(
    ("ranges", "size", "tile"),
    [
        ([((512, 512), (512, 512))], (1024, 1536), (512, 512)),  # static: as large as it is
        ([((512, 512), (512, 512))], (1024, 1500), None),  # ends between pixels of the lowest level
        ([((256, 256), (640, 640))], (1024, 1500), (640, 588)),
        ([((64, 64), (128, 128)), ((512, 512), (640, 640))], (600, 1280), (600, 608)),
        ([((64, 64), (128, 128))], (1024, 1024), None),  # nothing but margin
        ([((256, 256), (640, 640))], (100, 1024), None),  # below its least
    ],
)
def test_larger_than_a_plans_profiles(
    ranges: list[tuple[Size, Size]], size: Size, tile: Size | None
) -> None:
    with Plan.of(*ranges) as engine:
        grid = Cutter(engine, None, 1, 0).grid(size, size)
        assert (None if grid is None else grid.input_size) == tile
        if grid is not None:
            assert engine.refusal(grid.input_size, grid.mask_size) is None


def test_an_image_that_no_profile_takes_in_tiles_is_refused() -> None:
    with Plan.of((SMALL, SMALL)) as engine:
        masks, failed = masks_of(engine, 6)
    assert (sorted(masks), failed) == ([0, 2, 3, 5], {1: "no profile", 4: "no profile"})


def test_a_tile_that_is_not_finite_fails_its_image_once() -> None:
    def half_white(index: int) -> Loaded:
        image = np.full((3000, 32, 1), index % 2, np.uint8)
        if index == 2:
            image[1000:] = 255
        return image, (3000, 32)

    with ThresholdEngine(batch=2) as engine:
        masks: dict[int, U8] = {}
        options = PipelineOptions(tile=512)
        results = list(run_pipeline(engine, range(5), half_white, masks.__setitem__, options))
    failed = {result.task: result.reason for result in results if result.error}
    assert failed == {2: "the network's output is not finite"}
    assert sorted(result.task for result in results) == [0, 1, 2, 3, 4]
    assert {index: (mask == index % 2).all() for index, mask in masks.items()} == dict.fromkeys(
        [0, 1, 3, 4], True
    )


@pytest.mark.parametrize("waiting", [64, 2])
def test_a_stop_does_not_wait_for_an_image_of_many_tiles(waiting: int) -> None:
    """What is yielded is whole; the mask of the image that was cut off is made by the next run."""
    submitted = []

    class Counting(ThresholdEngine):
        def infer(self, images: U8, masks: U8) -> None:
            submitted.append(len(images))
            super().infer(images, masks)

    def tasks() -> Iterator[int]:
        yield from range(3)

    masks: dict[int, U8] = {}
    with Counting() as engine:
        options = PipelineOptions(tile=512, slots=1, waiting=waiting)
        results = list(
            run_pipeline(
                engine,
                tasks(),
                lambda index: (np.full((3000, 32, 1), index, np.uint8), (3000, 32)),
                masks.__setitem__,
                options,
                stop=lambda: len(submitted) > 3,
            )
        )
    assert len(submitted) <= 6  # of some dozen
    assert masks == {}
    assert results == []


@pytest.mark.parametrize("quick", [True, False])
def test_a_single_image_has_as_many_slots_as_its_tiles_can_use(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.runtime.fit.SLOW", 10**12 if quick else -1)
    for size, slots in ((SMALL, 1), ((3000, 32), 3)):
        options = PipelineOptions(tile=512, single=True)
        with WatchedEngine(slots=3) as engine:
            image = np.zeros((*size, 1), np.uint8)
            results = list(
                run_pipeline(
                    engine, [0], lambda _, i=image, s=size: (i, s), lambda *_: None, options
                )
            )
        assert [result.error for result in results] == [None]
        assert engine.opened == engine.most == slots
