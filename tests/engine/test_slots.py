"""One contract for every backend: what holds for a slot holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, Slot
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import OpenVinoEngine, supports_bf16

KINDS = ("torch", "onnxruntime", "openvino-fp32", "openvino-bf16")
Draw = Callable[..., U8]


def engine_of_kind(kind: str, checkpoint: Path, onnx: Path) -> Engine:
    if kind == "torch":
        return open_engine(checkpoint, device="cpu")
    if kind == "onnxruntime":
        return open_engine(onnx)
    precision = kind.removeprefix("openvino-")
    if precision == "bf16" and not supports_bf16():
        pytest.skip("this processor has no bfloat16")
    return OpenVinoEngine(onnx, metadata_from_onnx(onnx)[0], precision)


@pytest.fixture(scope="module", params=KINDS)
def engine(
    request: pytest.FixtureRequest,
    checkpoint_file: Callable[..., Path],
    exported: Callable[..., Path],
) -> Iterator[Engine]:
    with engine_of_kind(request.param, checkpoint_file(), exported()) as opened:
        yield opened


@pytest.fixture
def slot(engine: Engine) -> Iterator[Slot]:
    opened = engine.slot()
    yield opened
    opened.close()


def alone(engine: Engine, images: U8, size: Size) -> U8:
    return np.stack([engine.run(image, size) for image in images])


def submit(slot: Slot, images: U8, size: Size) -> None:
    slot.reserve(len(images), (images.shape[1], images.shape[2]))[:] = images
    slot.submit(len(images), size)


@pytest.fixture
def batch(steel: Draw) -> Callable[..., U8]:
    def draw(count: int, height: int, width: int, first: int = 0) -> U8:
        return np.stack([steel(first + i, height, width) for i in range(count)])

    return draw


class TestSlot:
    def test_masks_are_those_of_each_image_alone(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8]
    ) -> None:
        images = batch(3, 48, 64)
        submit(slot, images, (48, 64))
        masks = slot.masks()
        assert masks.shape == (3, 48, 64)
        assert masks.dtype == np.uint8
        assert len(np.unique(masks)) > 1
        assert np.array_equal(masks, alone(engine, images, (48, 64)))

    @pytest.mark.parametrize("size", [(96, 128), (31, 50), (64, 48), (1, 1)])
    def test_masks_come_at_the_size_asked(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8], size: Size
    ) -> None:
        images = batch(2, 48, 64)
        submit(slot, images, size)
        assert slot.masks().shape == (2, *size)
        assert np.array_equal(slot.masks(), alone(engine, images, size))

    def test_reserve_grows_and_shrinks(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8]
    ) -> None:
        shapes = [
            (1, (20, 24), (20, 24)),
            (4, (64, 48), (64, 48)),
            (2, (33, 17), (66, 34)),
            (1, (1, 1), (1, 1)),
            (4, (64, 48), (30, 20)),
            (4, (48, 64), (48, 64)),
        ]
        for count, size, mask_size in shapes:
            images = batch(count, *size, first=count)
            view = slot.reserve(count, size)
            assert view.shape == slot.images.shape == (count, *size, 1)
            assert np.shares_memory(view, slot.images)
            view[:] = images
            slot.submit(count, mask_size)
            assert np.array_equal(slot.masks(), alone(engine, images, mask_size)), (count, size)

    def test_a_slot_serves_the_same_shape_again_with_new_images(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8]
    ) -> None:
        slot.reserve(2, (48, 64))
        for first in (0, 2, 4):
            images = batch(2, 48, 64, first=first)
            slot.images[:] = images
            slot.submit(2, (48, 64))
            assert np.array_equal(slot.masks(), alone(engine, images, (48, 64)))

    def test_it_runs_on_images_where_they_lie(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8]
    ) -> None:
        memory = engine.memory()
        for count, size, mask_size in (
            (2, (48, 64), (48, 64)),
            (4, (64, 48), (30, 20)),
            (2, (48, 64), (48, 64)),
        ):
            for first in (0, 3):
                images = batch(count, *size, first=first)
                page = memory.view((2 * count, *size, 1))
                page[count:] = images
                slot.use(page[count:])
                assert np.shares_memory(slot.images, page)
                slot.submit(count, mask_size)
                assert np.array_equal(slot.masks(), alone(engine, images, mask_size))
                submit(slot, images[::-1], mask_size)
                assert np.array_equal(slot.masks(), alone(engine, images[::-1], mask_size))
                assert np.array_equal(page[count:], images), "what it used is not its own"
        memory.free()
        memory.free()

    def test_a_short_batch_gives_its_own_masks(
        self, engine: Engine, slot: Slot, batch: Callable[..., U8]
    ) -> None:
        images = batch(2, 48, 64)
        slot.reserve(4, (48, 64))[:2] = images
        slot.images[2:] = 200
        slot.submit(2, (48, 64))
        assert slot.masks().shape == (2, 48, 64)
        assert np.array_equal(slot.masks(), alone(engine, images, (48, 64)))

    def test_slots_in_flight_keep_their_own_results(
        self, engine: Engine, batch: Callable[..., U8]
    ) -> None:
        slots = [engine.slot() for _ in range(3)]
        pictures = [batch(2, 48, 64, first=2 * i) for i in range(3)]
        for slot, images in zip(slots, pictures, strict=True):
            submit(slot, images, (48, 64))
        for slot, images in reversed(list(zip(slots, pictures, strict=True))):
            assert np.array_equal(slot.masks(), alone(engine, images, (48, 64)))
            slot.close()

    def test_threads_with_a_slot_each(self, engine: Engine, batch: Callable[..., U8]) -> None:
        sizes = [(48, 64), (64, 48), (48, 64), (32, 40)]
        expected = [alone(engine, batch(2, *size, first=i), size) for i, size in enumerate(sizes)]

        def work(index: int) -> bool:
            slot, images = engine.slot(), batch(2, *sizes[index], first=index)
            equal = True
            for _ in range(4):
                submit(slot, images, sizes[index])
                equal &= np.array_equal(slot.masks(), expected[index])
            slot.close()
            return equal

        with ThreadPoolExecutor(len(sizes)) as pool:
            assert all(pool.map(work, range(len(sizes))))

    def test_run_gives_a_mask_of_its_own(self, engine: Engine, steel: Draw) -> None:
        first = engine.run(steel(0, 48, 64), (48, 64))
        kept = first.copy()
        engine.run(steel(1, 48, 64), (48, 64))
        assert np.array_equal(first, kept)

    def test_masks_before_submit_is_an_error(self, engine: Engine) -> None:
        with pytest.raises(RuntimeError, match="before submit"):
            engine.slot().masks()

    def test_closing_twice_is_harmless(self, engine: Engine, batch: Callable[..., U8]) -> None:
        slot = engine.slot()
        submit(slot, batch(1, 20, 20), (20, 20))
        slot.masks()
        slot.close()
        slot.close()

    def test_the_engine_says_what_it_is(self, engine: Engine) -> None:
        assert engine.label == f"{engine.backend} {engine.precision} on cpu"
        assert engine.slots >= 2
        assert engine.spec.classes == 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_closes_twice(
    kind: str, checkpoint_file: Callable[..., Path], exported: Callable[..., Path]
) -> None:
    engine = engine_of_kind(kind, checkpoint_file(), exported())
    engine.close()
    engine.close()


def test_backends_agree(
    checkpoint_file: Callable[..., Path], exported: Callable[..., Path], batch: Callable[..., U8]
) -> None:
    """The masks of all fp32 backends are equal but for pixels of no margin."""
    images = batch(4, 64, 80)
    masks = []
    for kind in KINDS[:3]:
        with engine_of_kind(kind, checkpoint_file(), exported()) as engine:
            masks.append(alone(engine, images, (64, 80)))
    assert np.mean(masks[0] == masks[1]) >= 0.9999
    assert np.mean(masks[0] == masks[2]) >= 0.9999


def test_more_shapes_than_openvino_keeps(
    exported: Callable[..., Path], steel: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.engine.openvino_backend.MAX_SHAPES", 2)
    with engine_of_kind("openvino-fp32", exported(), exported()) as engine:
        image = steel(0, 48, 48)
        first = engine.run(image, (48, 48))
        for side in (49, 50, 51):
            engine.run(image, (side, side))
        assert isinstance(engine, OpenVinoEngine)
        assert len(engine._compiled) == 2
        assert np.array_equal(engine.run(image, (48, 48)), first)


def test_openvino_keeps_no_more_shapes_than_the_memory_allows(
    exported: Callable[..., Path], steel: Draw
) -> None:
    """Each holds what its network computes: twelve photographs of other sizes, gigabytes."""
    with engine_of_kind("openvino-fp32", exported(), exported()) as engine:
        assert isinstance(engine, OpenVinoEngine)
        engine._memory = engine._held_by((1, 96, 48, 96, 48))
        for side in (96, 48, 47, 46):
            assert engine.run(steel(0, side, 48), (side, 48)).shape == (side, 48)
        assert [shape[1] for shape in engine._compiled] == [48, 47, 46]
        engine.run(steel(0, 200, 48), (200, 48))
        assert [shape[1] for shape in engine._compiled] == [47, 46, 200]


def test_openvino_in_one_process_of_several_keeps_its_part(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would keep a quarter of the memory, and four of them have all of it."""
    monkeypatch.setattr("unetrt.engine.probe.usable_cores", lambda: 8)
    spec = metadata_from_onnx(exported())[0]
    kept = []
    for threads in (None, 2, 16):
        with OpenVinoEngine(exported(), spec, "fp32", threads=threads) as engine:
            kept.append(engine._memory)
    assert kept[1] == pytest.approx(kept[0] / 4, abs=1)
    assert kept[2] == kept[0]
