from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.masks import read_mask
from unetrt.training.synthetic import CLASS_NAMES, MASK_VALUES, draw_pair, write_dataset


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (64, 64), (200, 133)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    image, mask = draw_pair(0, size)
    assert image.shape == mask.shape == size
    assert image.dtype == mask.dtype == np.uint8
    assert mask.max() < len(CLASS_NAMES)


def test_a_picture_follows_index_and_seed_alone() -> None:
    first = draw_pair(3, (40, 40), seed=1)
    draw_pair(4, (40, 40), seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, draw_pair(3, (40, 40), 1), strict=True))
    assert not np.array_equal(first[0], draw_pair(4, (40, 40), 1)[0])
    assert not np.array_equal(first[0], draw_pair(3, (40, 40), 2)[0])


def test_each_class_is_common_and_brightness_does_not_tell_it() -> None:
    pairs = [draw_pair(i, (96, 96)) for i in range(60)]
    pixels = np.concatenate([image.ravel() for image, _ in pairs])
    classes = np.concatenate([mask.ravel() for _, mask in pairs])
    shares = np.bincount(classes, minlength=4) / classes.size
    assert shares[0] < 0.95
    assert (shares[1:] > 0.01).all()
    for index in (1, 2, 3):
        hits = [((pixels < t) & (classes == index)).sum() for t in range(0, 257, 8)]
        below = np.array([(pixels < t).sum() for t in range(0, 257, 8)])
        of_class = (classes == index).sum()
        dark = hits / (below + of_class - hits)
        hits = of_class - np.array(hits)
        bright = hits / (pixels.size - below + of_class - hits)
        assert max(dark.max(), bright.max()) < 0.4


def test_files_hold_what_was_drawn(tmp_path: Path) -> None:
    images, masks = write_dataset(tmp_path, 12, (64, 48), seed=5)
    assert sorted(p.name for p in images.iterdir()) == sorted(p.name for p in masks.iterdir())
    values = {int(value) for path in masks.iterdir() for value in np.unique(read_mask(path))}
    assert tuple(sorted(values)) == MASK_VALUES
    image, mask = draw_pair(7, (64, 48), seed=5)
    for folder, drawn in ((images, image), (masks, mask)):
        assert np.array_equal(np.asarray(Image.open(folder / "steel-00007.png")), drawn)
