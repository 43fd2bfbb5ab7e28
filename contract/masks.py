"""Mask files ↔ class indices. Pixel values are taken as they are written, never converted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ImageError, UserError
from .headers import Picture, decoding, open_picture, read_bytes
from .images import deep_samples, turn_upright
from .spec import MaskValue, ModelSpec
from .types import NO_CLASS, U8

MaskPixels: TypeAlias = npt.NDArray[Any]
"""Values as a file holds them: uint8 (H, W) or (H, W, 3); bool (H, W) from a 1-bit file."""

_UNKNOWN = NO_CLASS - 1
"""A table entry that is no class: the 254 classes that a spec can have end one below it."""

_MOST_VALUES = NO_CLASS - 1


def read_mask(path: Path) -> MaskPixels:
    """Read a mask's values, upright: grey or palette indices (H, W), or colours (H, W, 3).

    uint8; bool from a 1-bit file. Raises ImageError for values that are not all 0 to 255.
    """
    data = read_bytes(path)
    with decoding(str(path)):
        if path.suffix.lower() == ".npy":
            return _bytes_from_values(np.load(io.BytesIO(data), allow_pickle=False), path)
        picture = open_picture(data, str(path))
        pixels = _bytes_from_values(_stored_values(picture), path)
        upright = np.ascontiguousarray(turn_upright(pixels, picture.orientation))
        return upright.astype(np.bool_) if picture.image.mode == "1" else upright


def _stored_values(picture: Picture) -> MaskPixels:
    image = picture.image
    if picture.maximum > 255:
        return deep_samples(picture)
    picture.load()
    if image.mode in ("1", "L", "P"):
        return np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[:, :, :3]
    raise picture.error("not a mask", seen=f"Pillow mode {image.mode}")


def _bytes_from_values(values: MaskPixels, path: Path) -> U8:
    """Integers of any width → uint8, when they are an image's and fit."""
    if values.dtype.kind not in "bui" or values.ndim not in (2, 3) or values.size == 0:
        seen = f"{values.dtype} of shape {values.shape}"
        raise ImageError(f"{path} is not a mask", seen=seen, expected="integers of shape (H, W)")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise ImageError(
            f"{path} holds values that no class can have", seen=f"{low} to {high}", expected="0-255"
        )
    return values.astype(np.uint8)


def class_indices(pixels: MaskPixels, spec: ModelSpec, path: Path | None = None) -> U8:
    """Turn what `read_mask` gives into indices uint8 (H, W); `ignore_index` gives NO_CLASS.

    A bool mask is the two classes of a two-class spec in their order, whatever their values.
    Raises ImageError naming the values that no class has.
    """
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
        if spec.mask_classes == 2:
            return pixels
    if pixels.ndim == 3 and not spec.rgb_masks and _is_grey(pixels):
        pixels = pixels[:, :, 0]
    if (pixels.ndim == 3) != spec.rgb_masks:
        raise ImageError(
            f"{path or 'a mask'} holds {'colours' if pixels.ndim == 3 else 'single values'}",
            expected=f"the classes' values: {_listed(spec.mask_values)}",
        )
    indices = _from_colours(pixels, spec) if spec.rgb_masks else _table(spec)[pixels]
    if (indices == _UNKNOWN).any():
        raise _unknown_values(pixels[indices == _UNKNOWN], spec, path)
    return indices


def _is_grey(pixels: MaskPixels) -> bool:
    first = pixels[:, :, :1]
    return bool((pixels == first).all())


def _table(spec: ModelSpec) -> U8:
    """(256,) grey value → class index, NO_CLASS or _UNKNOWN."""
    table = np.full(256, _UNKNOWN, np.uint8)
    for index, value in enumerate(spec.mask_values):
        table[value] = index
    if spec.ignore_index is not None:
        table[spec.ignore_index] = NO_CLASS
    return table


def _from_colours(pixels: MaskPixels, spec: ModelSpec) -> U8:
    """(H, W, 3) → (H, W); `ignore_index` is the grey of that value."""
    colours = np.array(spec.mask_values, np.uint8)
    indices = np.arange(len(colours), dtype=np.uint8)
    if spec.ignore_index is not None:
        colours = np.vstack([colours, np.full((1, 3), spec.ignore_index, np.uint8)])
        indices = np.append(indices, np.uint8(NO_CLASS))
    known = _packed(colours)
    # The ignored colour comes last: of equal colours, the later one in the sorted order is taken.
    order = np.argsort(known, kind="stable")
    packed = _packed(pixels)
    places = np.searchsorted(known[order], packed, side="right") - 1
    found = np.where(known[order][places] == packed, indices[order][places], _UNKNOWN)
    return found.astype(np.uint8)


def _packed(colours: MaskPixels) -> npt.NDArray[np.uint32]:
    """(..., 3) uint8 → (...) of 24 bits, in the order of the triples."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    packed: npt.NDArray[np.uint32] = red << 16 | green << 8 | blue
    return packed


def _unknown_values(unknown: MaskPixels, spec: ModelSpec, path: Path | None) -> ImageError:
    values = _distinct(unknown)
    hint = None
    if len(values) > 8 or (path is not None and path.suffix.lower() in (".jpg", ".jpeg")):
        hint = "JPEG and smooth resizing change mask values: write masks as PNG, resize by nearest"
    ignored = "" if spec.ignore_index is None else f", ignored: {spec.ignore_index}"
    return ImageError(
        f"{path or 'a mask'} holds values that no class has",
        seen=f"{_listed(values)} in {len(unknown)} pixels",
        expected=_listed(spec.mask_values) + ignored,
        hint=hint,
    )


def _listed(values: Sequence[MaskValue]) -> str:
    more = f" … ({len(values)} in all)" if len(values) > 12 else ""
    return ", ".join(map(str, values[:12])) + more


def _distinct(pixels: MaskPixels) -> list[MaskValue]:
    """(N,) → sorted integers; (N, 3) → sorted triples."""
    if pixels.ndim == 1:
        return list(np.flatnonzero(np.bincount(pixels, minlength=256)).tolist())
    packed = np.unique(_packed(pixels)).tolist()
    return [(value >> 16, value >> 8 & 255, value & 255) for value in packed]


def mask_values_from_files(paths: Sequence[Path]) -> tuple[MaskValue, ...]:
    """Collect the sorted values of mask files: integers, or triples where a file has colours.

    A 1-bit file adds 0 and 1 only where no other file tells the two values.
    Raises ImageError for a file that is not like the others, UserError for too many values.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_file_values, paths))
    coloured = any(_has_colour(values) for _, values in found)
    merged: set[MaskValue] = set()
    for path, (one_bit, values) in zip(paths, found, strict=True):
        if not one_bit:
            merged.update(_alike(values, coloured, path))
    if len(merged) < 2 and not coloured and any(one_bit for one_bit, _ in found):
        merged |= {0, 1}
    if len(merged) > _MOST_VALUES:
        raise UserError(
            "the masks hold more values than there can be classes",
            seen=f"{len(merged)} values in {len(paths)} files",
            expected=f"at most {_MOST_VALUES}",
            hint="JPEG and smooth resizing make new values: write masks as PNG",
        )
    return tuple(sorted(merged, key=_sort_key))


def _file_values(path: Path) -> tuple[bool, list[MaskValue]]:
    """Whether it is a 1-bit file, and its distinct values."""
    pixels = read_mask(path)
    flat = pixels.reshape(-1, 3) if pixels.ndim == 3 else pixels.ravel()
    return pixels.dtype == np.bool_, _distinct(flat.astype(np.uint8))


def _has_colour(values: Sequence[MaskValue]) -> bool:
    return any(isinstance(v, tuple) and len(set(v)) > 1 for v in values)


def _alike(values: Sequence[MaskValue], coloured: bool, path: Path) -> list[MaskValue]:
    """Grey triples as integers, unless the set has colours: then every file must have three."""
    if not coloured:
        return [v[0] if isinstance(v, tuple) else v for v in values]
    if not all(isinstance(v, tuple) for v in values):
        raise ImageError(f"{path} holds single values, other masks hold colours")
    return list(values)


def _sort_key(value: MaskValue) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def mask_pixels(indices: U8, spec: ModelSpec) -> U8:
    """Class indices (H, W) → the values to write, uint8 (H, W), or (H, W, 3) for colour classes.

    Raises ValueError for an index that is no class.
    """
    highest = int(indices.max(initial=0))
    if highest >= spec.mask_classes:
        raise ValueError(f"class {highest} in a mask of {spec.mask_classes} classes")
    return np.array(spec.mask_values, np.uint8)[indices]
