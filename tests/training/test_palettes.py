"""Masks with a palette: indices where the palettes agree, else colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.test_samples import mask_of, message, options_for, write_pair
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.training.samples import load_training_data

Folders = tuple[Path, Path]


def write_mask(folders: Folders, name: str, picture: Image.Image, suffix: str = ".png") -> None:
    """In place of the mask of `write_pair`, with an image of its size."""
    size = picture.size[::-1]
    Image.fromarray(np.full(size, 100, np.uint8)).save(folders[0] / f"{name}.png")
    picture.save(folders[1] / f"{name}{suffix}")


def palette_mask(values: U8, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(values)
    picture.putpalette([x for colour in colours for x in colour])
    return picture


def truths(folders: Folders, **changes: object) -> tuple[dict[str, set[int]], ModelSpec]:
    data = load_training_data(options_for(folders, scale=1.0, **changes), None)
    samples = [*data.train, *data.validation]
    return {s.pair.name: {*np.unique(s.load()[1]).tolist()} for s in samples}, data.spec


def test_gifs_of_one_colour_are_read_by_their_colour(empty_pairs: Folders) -> None:
    """Pillow writes each colour that occurs with the next index: here white is 1, and 0."""
    for name, values in {"a": (0, 255), "b": (255,), "c": (0,), "d": (0, 255)}.items():
        write_mask(empty_pairs, name, Image.fromarray(mask_of(*values)), ".gif")
    found, spec = truths(empty_pairs)
    assert found == {"a": {0, 1}, "b": {1}, "c": {0}, "d": {0, 1}}
    assert (spec.mask_values, spec.palette) == ((0, 255), ())


def test_palettes_in_opposite_order_are_read_by_their_colours(empty_pairs: Folders) -> None:
    black, red = (0, 0, 0), (255, 0, 0)
    for name in "ab":
        write_mask(empty_pairs, name, palette_mask(mask_of(0, 1), black, red))
    write_mask(empty_pairs, "c", palette_mask(mask_of(0, 0, 1), red, black))
    write_mask(empty_pairs, "d", palette_mask(mask_of(0), red))
    found, spec = truths(empty_pairs)
    assert spec.mask_values == (black, red)
    assert found == {"a": {0, 1}, "b": {0, 1}, "c": {0, 1}, "d": {1}}


def test_palettes_that_agree_are_indices_and_are_kept(empty_pairs: Folders) -> None:
    colours = (0, 0, 0), (128, 0, 0), (0, 128, 0)
    for name, values in {"a": (0, 1), "b": (0, 2), "c": (2, 1), "d": (0, 1, 2)}.items():
        write_mask(empty_pairs, name, palette_mask(mask_of(*values), *colours))
    found, spec = truths(empty_pairs, classes=3)
    assert found == {"a": {0, 1}, "b": {0, 2}, "c": {1, 2}, "d": {0, 1, 2}}
    assert spec.mask_values == (0, 1, 2)
    assert spec.palette == ((0, 0, 0, 0), (1, 128, 0, 0), (2, 0, 128, 0))


def test_palettes_that_neither_index_nor_colour_explains_are_listed(empty_pairs: Folders) -> None:
    grey = (100, 100, 100)
    write_mask(empty_pairs, "a", palette_mask(mask_of(0, 1), grey, grey))
    write_mask(empty_pairs, "b", palette_mask(mask_of(0, 1), grey, (9, 9, 9)))
    text = message(options_for(empty_pairs))
    assert f"{empty_pairs[1] / 'b.png'} has another palette" in text
    assert "index 1 is (9, 9, 9) here and (100, 100, 100) in others" in text


def test_palettes_beside_grey_masks_are_read_as_these(empty_pairs: Folders) -> None:
    write_pair(empty_pairs, "a", mask_of(0, 255))
    for name in "bc":
        write_mask(empty_pairs, name, Image.fromarray(mask_of(0, 255)), ".gif")
    write_mask(empty_pairs, "d", Image.fromarray(mask_of(0, 255)), ".gif")
    found, spec = truths(empty_pairs)
    assert spec.mask_values == (0, 255)
    assert set(map(frozenset, found.values())) == {frozenset({0, 1})}


def test_colours_that_no_named_class_has_are_listed(empty_pairs: Folders) -> None:
    """By index each of them would be a class."""
    black, white = (0, 0, 0), (255, 255, 255)
    write_mask(empty_pairs, "a", palette_mask(mask_of(0, 1), black, white))
    write_mask(empty_pairs, "b", palette_mask(mask_of(0, 1), white, black))
    text = message(options_for(empty_pairs, mask_values=(0, 1)))
    assert text.count("holds colours that no class has: 255") == 2
