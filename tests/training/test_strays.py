"""Values that may be stray pixels: warned of where they become classes, else each file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.training.mask_files import read_mask_set
from unetrt.training.options import TrainOptions
from unetrt.training.pairs import PROBLEMS, match_pairs
from unetrt.training.samples import load_training_data

Folders = tuple[Path, Path]


def write_mask(folders: Folders, name: str, mask: U8) -> None:
    Image.fromarray(np.full(mask.shape, 100, np.uint8)).save(folders[0] / f"{name}.png")
    Image.fromarray(mask).save(folders[1] / f"{name}.png")


def mask_of(*values: int, stray: int | None = None) -> U8:
    """64×64 pixels of these values in stripes, and one of another."""
    mask = np.resize(np.array(values, np.uint8), (64, 64))
    if stray is not None:
        mask[0, 0] = stray
    return mask


def options_for(folders: Folders, **changes: Any) -> TrainOptions:
    return TrainOptions(images=folders[0], masks=folders[1], channels=1, validation=25, **changes)


def warnings_of(folders: Folders, start: ModelSpec | None = None, **changes: Any) -> list[str]:
    return list(load_training_data(options_for(folders, **changes), start).warnings)


def message(folders: Folders, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_training_data(options_for(folders, **changes), None)
    return str(caught.value)


def test_one_pixel_of_two_files_is_asked_about(empty_pairs: Folders) -> None:
    for name in "abcdefgh":
        write_mask(empty_pairs, name, mask_of(0, 1, 2, stray=7 if name in "cf" else None))
    [warning] = warnings_of(empty_pairs, classes=4)
    files = ", ".join(str(empty_pairs[1] / f"{name}.png") for name in "cf")
    assert "value 7 (class 3) is " in warning
    assert f"0.0061 % of the pixels, in 2 of 8 masks: {files}" in warning
    assert "--mask-values 0,1,2,7 says so" in warning
    assert not warnings_of(empty_pairs, classes=4, mask_values=(0, 1, 2, 7))
    start = ModelSpec(classes=4, channels=1, mask_values=(0, 1, 2, 7))
    assert not warnings_of(empty_pairs, start, classes=4)


def test_a_value_of_many_pixels_in_few_files_is_asked_about(empty_pairs: Folders) -> None:
    for name in range(100):
        write_mask(empty_pairs, f"{name:03}", mask_of(0, 9) if name < 2 else mask_of(0, 5))
    [warning] = warnings_of(empty_pairs, classes=3)
    assert "value 9" in warning
    assert "1 % of the pixels, in 2 of 100 masks" in warning


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 100)])
def test_values_that_are_common_or_usual_are_not(
    empty_pairs: Folders, values: tuple[int, int]
) -> None:
    """A rare class by its number, or white on black; another value where it is common."""
    other = values[1]
    common = other == 100
    for name in "abcdefgh":
        rare = None if name in "ab" else other
        write_mask(empty_pairs, name, mask_of(*values) if common else mask_of(0, stray=rare))
    assert not warnings_of(empty_pairs)


@pytest.mark.parametrize(("value", "greys", "told"), [(7, 2, True), (255, 2, False), (7, 5, False)])
def test_few_grey_masks_do_not_silently_revalue_the_others(
    empty_pairs: Folders, value: int, greys: int, told: bool
) -> None:
    for place, name in enumerate("abcdefgh"):
        mask = mask_of(0, 1)
        write_mask(empty_pairs, name, mask * value if place < greys else mask.astype(bool))
    found = warnings_of(empty_pairs)
    assert bool(found) == told
    if told:
        files = ", ".join(str(empty_pairs[1] / f"{name}.png") for name in "ab")
        assert f"2 of 8 masks, {files}, hold 0,7" in found[0]
        assert not warnings_of(empty_pairs, mask_values=(0, 7))


@pytest.mark.parametrize("same", [True, False])
def test_every_file_with_a_stray_value_is_named(
    empty_pairs: Folders, tmp_path: Path, same: bool
) -> None:
    """One value in thirty files, or thirty values in one each; the hint does not make them classes.

    A wrong size in one of these files is told beside it.
    """
    for i in range(70):
        stray = (9 if same else 100 + i) if i < 30 else None
        write_mask(empty_pairs, f"{i:02}", mask_of(0, 1, stray=stray))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(empty_pairs[0] / "03.png")
    out = tmp_path / "out"
    out.mkdir()
    text = message(empty_pairs, out=out)
    assert "32 problems" in text
    assert text.endswith("Hint: --mask-values 0,1")
    lines = (out / PROBLEMS).read_text().splitlines()
    for i in range(30):
        start = f"{empty_pairs[1] / f'{i:02}.png'} holds values that most masks lack: "
        assert f"{start}{9 if same else 100 + i} (1 of 4096 pixels)" in lines
    assert any("differ in size" in line for line in lines)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_where_masks_should_be_are_asked_about(
    empty_pairs: Folders, suffix: str
) -> None:
    """None of their colours is counted: there are as many as pixels."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        photograph = Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8))
        photograph.save(empty_pairs[1] / f"{name}.{suffix}")
        Image.fromarray(mask_of(0, 1)).resize((80, 80), 0).save(empty_pairs[0] / f"{name}.png")
    pairs, _ = match_pairs(*empty_pairs)
    masks = read_mask_set(pairs, frozenset())
    assert not masks.files
    assert len(masks.problems) == 4
    text = message(empty_pairs, classes=2)
    assert "4 problems" in text
    assert "colours, as a photograph does: are --images and --masks swapped?" in text
    assert ("write masks as PNG" in text) == (suffix == "jpg")


def test_a_class_too_many_is_not_named_file_by_file(empty_pairs: Folders) -> None:
    for name in "abcdefgh":
        write_mask(empty_pairs, name, mask_of(0, 1, 2))
    text = message(empty_pairs)
    assert "1 problem with" in text
    assert text.endswith("Hint: --classes 3")
