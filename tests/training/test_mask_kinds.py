"""Masks of every kind train: read, checked, stepped on and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.samples import load_training_data
from unetrt.training.train import train

COLOURS = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
Write = Callable[[U8, Path], None]


def write_palette(truth: U8, path: Path) -> None:
    """Indices 0 and 1 whose colours are of equal grey: only the index tells them apart."""
    picture = Image.fromarray(truth)
    picture.putpalette([100, 100, 100, 100, 100, 100])
    picture.save(path)


# Of palettes that agree the index counts: Pillow writes these GIFs with 0 and 1, 0 and 255.
KINDS: dict[str, tuple[str, Write, tuple[object, ...]]] = {
    "grey": (".png", lambda t, p: Image.fromarray(t).save(p), (0, 1)),
    "grey 0 and 255": (".png", lambda t, p: Image.fromarray(t * 255).save(p), (0, 255)),
    "one bit": (".png", lambda t, p: Image.fromarray(t.astype(bool)).save(p), (0, 1)),
    "palette": (".png", write_palette, (0, 1)),
    "colours": (".png", lambda t, p: Image.fromarray(COLOURS[t]).save(p), ((0, 0, 0), (255, 0, 0))),
    "gif": (".gif", lambda t, p: Image.fromarray(t * 255).save(p), (0, 1)),
    "carvana": ("_mask.gif", lambda t, p: Image.fromarray(t.astype(bool)).save(p), (0, 255)),
    "array": (".npy", lambda t, p: np.save(p, t.astype(np.int64)), (0, 1)),
}


def truth_of(index: int) -> U8:
    return np.asarray(np.indices((32, 40)).sum(0) + 5 * index > 36, np.uint8)


def folders(tmp_path: Path, ending: str, write: Write) -> TrainOptions:
    """Dotted names, sub-folders and hidden files."""
    images, masks = tmp_path / "imgs", tmp_path / "masks"
    for index, name in enumerate(("a.v1.0", "b", "sub/b", "sub/deep.er/c")):
        for folder in (images, masks):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        truth = truth_of(index)
        Image.fromarray(60 + 120 * truth).save(images / f"{name}.png")
        write(truth, masks / f"{name}{ending}")
    (images / ".hidden.png").write_bytes(b"")
    (masks / "._b.png").write_bytes(b"")
    return TrainOptions(
        images=images, masks=masks, channels=1, width=2, scale=1.0, validation=50,
        recipe=RecipeOptions(epochs=1, batch_size=2), out=tmp_path / "run",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_train(tmp_path: Path, kind: str) -> None:
    ending, write, values = KINDS[kind]
    options = folders(tmp_path, ending, write)
    data = load_training_data(options, None)
    samples = sorted([*data.train, *data.validation], key=lambda s: s.pair.name)
    assert [s.pair.name for s in samples] == ["a.v1.0", "b", "sub/b", "sub/deep.er/c"]
    for index, sample in enumerate(samples):
        assert np.array_equal(sample.load()[1], truth_of(index))
    assert read_checkpoint(train(options)).spec.mask_values == values


def test_a_value_that_no_class_has_names_its_file(tmp_path: Path) -> None:
    options = folders(tmp_path, ".png", KINDS["grey"][1])
    odd = truth_of(1)
    odd[3, 4] = 77
    Image.fromarray(odd).save(options.masks / "b.png")
    with pytest.raises(UserError) as caught:
        train(options)
    assert f"77 in {options.masks / 'b.png'}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_masks_of_nothing_but_such_a_value_are_told_too(tmp_path: Path) -> None:
    """As 255 for 1, where the values are named."""
    options = replace(folders(tmp_path, ".png", KINDS["grey"][1]), classes=2, mask_values=(0, 1))
    for path in options.masks.rglob("[!.]*.png"):
        Image.fromarray(np.full((32, 40), 255, np.uint8)).save(path)
    with pytest.raises(UserError, match="255"):
        train(options)


@pytest.mark.parametrize("crop", [None, 16])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_mixed_sizes_train_with_any_batch_size(
    tmp_path: Path, crop: int | None, batch_size: int
) -> None:
    options = folders(tmp_path, ".png", KINDS["grey"][1])
    for index, size in enumerate([(16, 16), (17, 33), (50, 20), (8, 60), (16, 16)]):
        truth = np.resize(truth_of(index), size)
        Image.fromarray(60 + 120 * truth).save(options.images / f"x{index}.png")
        Image.fromarray(truth).save(options.masks / f"x{index}.png")
    recipe = replace(options.recipe, batch_size=batch_size, augment=True)
    train(replace(options, recipe=recipe, crop=crop, validation=25))


def test_a_black_object_is_the_object_in_every_kind(tmp_path: Path) -> None:
    """--mask-values 255,0 on 1-bit masks took white for it, and on the same masks in grey black."""
    for kind in ("grey 0 and 255", "one bit"):
        options = folders(tmp_path / kind, ".png", KINDS[kind][1])
        data = load_training_data(replace(options, mask_values=(255, 0)), None)
        samples = [*data.train, *data.validation]
        for index, sample in enumerate(sorted(samples, key=lambda s: s.pair.name)):
            assert np.array_equal(sample.truth(), 1 - truth_of(index))
    write_white: Write = lambda t, p: Image.fromarray(np.ones_like(t, bool)).save(p)  # noqa: E731
    options = folders(tmp_path / "white", ".png", write_white)
    with pytest.raises(UserError, match="nothing but value 255"):
        load_training_data(replace(options, mask_values=(255, 0)), None)
