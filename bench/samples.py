"""A few images with the masks of every row, to be looked at side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contract.images import read_shown
from ..contract.masks import class_indices, read_mask, true_classes
from ..contract.spec import ModelSpec
from ..contract.types import U8
from ..runtime.viz import coloured_mask

LARGEST = 320
"""Pixels of the longer side that are kept: a report is not an archive."""


@dataclass(frozen=True)
class Samples:
    """panels: for each image, (title, RGB (H, W, 3)): the image, the truth if known, each row."""

    panels: tuple[tuple[tuple[str, U8], ...], ...]


def read_samples(
    images: Sequence[Path],
    truth: Mapping[int, Path],
    masks: Mapping[str, Sequence[Path]],
    spec: ModelSpec,
    count: int,
    bit_depth: int | None = None,
) -> Samples:
    """The `count` images whose masks in the first row hold most classes."""
    first = next(iter(masks.values()), ())
    varied = sorted(range(len(first)), key=lambda i: -len(np.unique(read_mask(first[i]))))
    panels = []
    for index in varied[:count]:
        image = read_shown(images[index], spec.channels, bit_depth=spec.depth(bit_depth))
        shown = [("image", image)]
        if index in truth:
            shown.append(("truth", coloured_mask(true_classes(truth[index], spec))))
        shown += [(name, _coloured(paths[index], spec)) for name, paths in masks.items()]
        panels.append(tuple((title, _smaller(picture)) for title, picture in shown))
    return Samples(tuple(panels))


def _coloured(path: Path, spec: ModelSpec) -> U8:
    return coloured_mask(class_indices(read_mask(path), spec, path))


def _smaller(picture: U8) -> U8:
    """Every n-th pixel: colours of masks stay what they are."""
    step = -(-max(picture.shape[:2]) // LARGEST)
    return np.ascontiguousarray(picture[::step, ::step])
