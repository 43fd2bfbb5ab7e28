"""Masks as run lengths in one JSON file, as COCO has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from ..contract.files import atomic_path
from ..contract.spec import ModelSpec
from ..contract.types import U8
from .plan import Task

NAME = "masks.json"
Recorded = Callable[[], Iterable[tuple[int, Task, dict[str, Any]]]]
"""Gives the place of every task in the job, the task and what `rle_from_mask` gave."""


def rle_from_mask(mask: U8) -> dict[str, Any]:
    """(H, W) class indices → {"size": [H, W], "counts": {class: run lengths}}.

    Every class that the mask holds but the first, the background.
    """
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=2)[1:]) + 1
    down = np.ascontiguousarray(mask.T)
    counts = {str(index): run_lengths(down == index) for index in present.tolist()}
    return {"size": list(mask.shape), "counts": counts}


def run_lengths(pixels: npt.NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs in memory order, of zeros and ones in turn; zeros come first."""
    flat = pixels.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    lengths: list[int] = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else lengths


def write_coco(path: Path, recorded: Recorded, spec: ModelSpec) -> None:
    """Write the images, their annotations and the categories, whole or not at all.

    Ids of images and annotations depend on the tasks alone, not on the order of the work.
    Raises OSError when the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        _write_items(file, (_image(*item) for item in recorded()))
        file.write('],\n"annotations": [')
        _write_items(file, _annotations(recorded(), spec.mask_classes))
        file.write('],\n"categories": [')
        names = enumerate(spec.class_names)
        _write_items(file, ({"id": i, "name": name} for i, name in names if i))
        file.write("]}\n")


def _write_items(file: TextIO, items: Iterable[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item))


def _image(place: int, task: Task, mask: dict[str, Any]) -> dict[str, Any]:
    height, width = mask["size"]
    return {"id": place + 1, "file_name": str(task.source), "height": height, "width": width}


def _annotations(
    recorded: Iterable[tuple[int, Task, dict[str, Any]]], classes: int
) -> Iterator[dict[str, Any]]:
    for place, _, mask in recorded:
        for index, counts in mask["counts"].items():
            yield {
                "id": place * classes + int(index),
                "image_id": place + 1,
                "category_id": int(index),
                "iscrowd": 1,
                "area": sum(counts[1::2]),
                "bbox": _box(counts, mask["size"][0]),
                "segmentation": {"size": mask["size"], "counts": counts},
            }


def _box(counts: list[int], height: int) -> list[int]:
    """[x, y, width, height] of the ones among run lengths that go down the columns."""
    ends = np.cumsum(counts)
    starts = ends[0::2][: len(counts) // 2]
    lasts = ends[1::2] - 1
    left, right = int(starts[0] // height), int(lasts[-1] // height)
    # A run that goes on in the next column touches the top and the bottom.
    wraps = starts // height != lasts // height
    top = 0 if wraps.any() else int((starts % height).min())
    bottom = height - 1 if wraps.any() else int((lasts % height).max())
    return [left, top, right - left + 1, bottom - top + 1]
