"""What other readers make of npy, COCO run lengths and overlays."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import torch_engine, write_picture
from tests.runtime.test_journal import MODEL
from tests.runtime.test_predict import files_below
from unetrt.contract.images import read_image
from unetrt.contract.palettes import class_colour
from unetrt.contract.resize import network_input
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.runtime.encode import encode_mask
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.overlay import MAX_SIDE, blend_mask, encode_overlay
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks
from unetrt.runtime.rle import rle_from_mask, write_coco

MASKS = arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.integers(0, 3),
)


def mask_from_counts(counts: list[int], size: list[int]) -> U8:
    """COCO's rule by hand: runs of zeros and ones in turn, down the columns."""
    flat = [i % 2 for i, count in enumerate(counts) for _ in range(count)]
    return np.array(flat, np.uint8).reshape(size[1], size[0]).T


@settings(deadline=None, max_examples=200)
@given(mask=MASKS)
def test_run_lengths_give_the_mask_back(mask: U8) -> None:
    rle = rle_from_mask(mask)
    assert set(rle["counts"]) == {str(i) for i in np.unique(mask) if i}
    for index, counts in rle["counts"].items():
        assert sum(counts) == mask.size
        assert all(counts[1:]), "no empty run but the first"
        np.testing.assert_array_equal(mask_from_counts(counts, rle["size"]), mask == int(index))


@settings(deadline=None, max_examples=100)
@given(masks=st.lists(MASKS, min_size=1, max_size=3))
def test_boxes_and_areas_are_those_of_the_pixels(
    masks: list[U8], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "masks.json"

    def recorded() -> Iterator[tuple[int, Task, dict[str, Any]]]:
        for place, mask in enumerate(masks):
            yield place, Task(Path(f"{place}.png"), None), rle_from_mask(mask)

    write_coco(path, recorded, ModelSpec(classes=4, class_names=("no", "a", "b", "c")))
    coco = json.loads(path.read_text())
    assert coco["categories"] == [{"id": i, "name": "nabc"[i]} for i in (1, 2, 3)]
    assert [image["id"] for image in coco["images"]] == list(range(1, len(masks) + 1))
    assert len({found["id"] for found in coco["annotations"]}) == len(coco["annotations"])
    for found in coco["annotations"]:
        pixels = masks[found["image_id"] - 1] == found["category_id"]
        rows, columns = np.nonzero(pixels)
        assert found["area"] == pixels.sum()
        x, y, width, height = found["bbox"]
        assert (x, x + width - 1, y, y + height - 1) == (
            columns.min(),
            columns.max(),
            rows.min(),
            rows.max(),
        )


def test_a_job_of_run_lengths_is_one_file_whatever_the_order_of_the_work(tmp_path: Path) -> None:
    sizes = [(40, 32), (33, 57), (64, 48), (1, 1), (40, 32)]
    sources = [
        write_picture(tmp_path / "in" / f"{i}.png", steel(i, *size)) for i, size in enumerate(sizes)
    ]
    out = tmp_path / "out"
    options = PredictOptions(
        format="rle", journal=JournalOptions(output_dir=out, model=MODEL), strict=True
    )
    whole = sources[2].read_bytes()
    sources[2].write_bytes(b"bad")
    with torch_engine(balanced_checkpoint()) as engine:
        tasks = plan_tasks([str(tmp_path / "in")], output_dir=out, save=False)
        assert predict_masks(engine, tasks, options).failed == 1
        assert (out / "masks.json").exists() is False, "the job is not finished"
        sources[2].write_bytes(whole)
        summary = predict_masks(engine, tasks, options)
        assert summary.done + summary.skipped == 5
        coco = json.loads((out / "masks.json").read_text())
        assert [image["file_name"] for image in coco["images"]] == list(map(str, sources))
        for place, source in enumerate(sources):
            mask = engine.run(*network_input(source, engine.spec))
            found = {
                a["category_id"]: a["segmentation"]
                for a in coco["annotations"]
                if a["image_id"] == place + 1
            }
            assert set(found) == set(np.unique(mask)) - {0}
            for index, rle in found.items():
                np.testing.assert_array_equal(mask_from_counts(**rle), mask == index)
        (out / "masks.json").unlink()
        assert predict_masks(engine, tasks, options).skipped == 5
        assert json.loads((out / "masks.json").read_text()) == coco
    assert files_below(out) == [".unetrt/journal.jsonl", "masks.json"]


def test_numpy_reads_npy() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(4, 3) % 3
    spec = ModelSpec(classes=3, mask_values=(0, 128, 255))
    for given_mask in (mask, mask[::2, ::-1]):
        data = encode_mask(given_mask, spec, "npy", ".npy")
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, given_mask)


def test_an_overlay_colours_what_is_no_background() -> None:
    image = np.full((4, 6, 3), 101, np.uint8)
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2] = 3
    blended = blend_mask(image, mask)
    assert tuple(blended[1, 2].tolist()) == tuple(50 + c // 2 for c in class_colour(3))
    blended[1, 2] = 101
    np.testing.assert_array_equal(blended, image)


@pytest.mark.parametrize("size", [(40, 32), (1, 1), (2, MAX_SIDE + 7)])
def test_pillow_and_cv2_read_an_overlay(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    data = encode_overlay(image, np.ones(size, np.uint8))
    with Image.open(io.BytesIO(data)) as opened:
        by_pillow = np.asarray(opened.convert("RGB"))
    by_cv2 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert by_pillow.shape[:2] == by_cv2.shape[:2] == (size if size[1] < 99 else (1, 32754))
    expected = [100 + c // 2 for c in class_colour(1)]
    assert abs(by_pillow.reshape(-1, 3).mean(0) - expected).max() < 4
    assert abs(by_cv2[..., ::-1].reshape(-1, 3).mean(0) - expected).max() < 4


def test_overlays_lie_in_their_folder_and_come_back_when_they_are_lost(tmp_path: Path) -> None:
    sources = [write_picture(tmp_path / "in" / f"{i}.png", steel(i, 40, 32)) for i in range(3)]
    out, look = tmp_path / "out", tmp_path / "look"
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=out, overlay_dir=look)
    plain = plan_tasks([str(tmp_path / "in")], output_dir=out)
    options = PredictOptions(journal=JournalOptions(output_dir=out, model=MODEL))
    with torch_engine(balanced_checkpoint()) as engine:
        assert predict_masks(engine, plain, options).done == 3
        assert predict_masks(engine, tasks, options).done == 3, "overlays were asked for later"
        assert predict_masks(engine, tasks, options).skipped == 3
        (look / "1.jpg").unlink()
        (look / ".1.jpg.77-0123abcd.tmp").write_text("of a killed job")
        assert predict_masks(engine, tasks, options).done == 1
        for source in sources:
            mask = engine.run(*network_input(source, engine.spec))
            expected = encode_overlay(read_image(source, 3), mask)
            assert (look / f"{source.stem}.jpg").read_bytes() == expected
    assert files_below(look) == ["0.jpg", "1.jpg", "2.jpg"]
