"""Class indices → the bytes of a mask file."""

from __future__ import annotations

import io
import struct
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image
from zlib_ng import zlib_ng as zlib

from ..contract.errors import UserError, as_word
from ..contract.log import log
from ..contract.masks import mask_pixels
from ..contract.palettes import Colours, class_colour
from ..contract.spec import ModelSpec
from ..contract.types import U8

MaskFormat = Literal["auto", "index", "palette", "bilevel", "npy", "rle", "prob", "prob-npy"]

NPY = ".npy"
NPY_FORMATS = frozenset({"npy", "prob-npy"})
PROB_FORMATS = frozenset({"prob", "prob-npy"})
LOSSY = frozenset({".jpg", ".jpeg"})
SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"}) | LOSSY

# PNG colour types (PNG specification, 11.2.2), with the channels of each.
_GREY, _RGB, _PALETTE = 0, 2, 3

ZLIB_LEVEL = 2
"""Masks are runs of equal bytes, which need no row filter. By zlib-ng at this level they take a
quarter to two thirds of the time that zlib's first one takes, and no more room."""


def resolve_format(wanted: MaskFormat, spec: ModelSpec) -> MaskFormat:
    """The format that `auto` means: what is seen in an image viewer without losing a value.

    Above two classes a palette, for the values 0 and 1 one bit (as the reference writes them),
    else the values themselves. Raises UserError for a format that cannot hold the masks.
    """
    if spec.result == "prob" or wanted in PROB_FORMATS:
        return _prob_format(wanted, spec)
    if wanted == "auto":
        if spec.mask_values == (0, 1):
            return "bilevel"
        return "palette" if spec.mask_classes > 2 and not spec.rgb_masks else "index"
    if wanted == "bilevel" and spec.mask_classes > 2:
        raise UserError(
            "bilevel masks hold two classes",
            seen=f"{spec.mask_classes} classes",
            expected="auto, index or palette",
            hint="--format index",
        )
    if wanted == "palette" and spec.rgb_masks:
        raise UserError(
            "the classes are colours already",
            seen=spec.mask_values,
            expected="auto or index",
            hint="--format index",
        )
    if wanted not in get_args(MaskFormat):
        raise UserError("no such mask format", seen=wanted, expected=get_args(MaskFormat))
    return wanted


def _prob_format(wanted: MaskFormat, spec: ModelSpec) -> MaskFormat:
    if spec.result != "prob" or wanted not in PROB_FORMATS:
        raise UserError(
            f"{wanted} is no format for what the model gives",
            seen="probabilities" if spec.result == "prob" else "masks",
            expected="prob or prob-npy for probabilities, and for them alone",
            hint="--format prob-npy" if spec.result == "prob" else "--format auto",
        )
    if wanted == "prob" and spec.mask_classes > 2:
        raise UserError(
            "an image holds the probability of one class",
            seen=f"{spec.mask_classes} classes",
            expected="prob-npy: uint8 (classes, H, W)",
            hint="--format prob-npy",
        )
    return wanted


def check_output_suffix(path: Path, spec: ModelSpec, fmt: MaskFormat = "index") -> None:
    """Raise UserError for a file type that would change the masks; warn where it only may."""
    suffix = path.suffix.lower()
    npy = "prob-npy" if fmt == "prob" else "npy"
    if (suffix == NPY) != (fmt in NPY_FORMATS):
        raise UserError(
            f"{path} is no name for masks of the format {fmt}",
            seen=suffix or "no suffix",
            expected=f"{NPY} for the formats npy and prob-npy, and for them alone",
            hint=f"--format {npy}" if suffix == NPY else f"-o {as_word(path.with_suffix(NPY))}",
        )
    if suffix not in SUFFIXES | {NPY}:
        raise UserError(
            f"masks are not written as {suffix or 'files without a suffix'}",
            seen=path,
            expected=" ".join(sorted(SUFFIXES)),
            hint="-o MASK.png, or --output-dir DIR for a folder",
        )
    if suffix in LOSSY and spec.mask_classes > 2:
        raise UserError(
            f"JPEG would change the classes of {path}",
            seen=f"{spec.mask_classes} classes",
            expected="a .png file, which keeps every value",
            hint=f"-o {as_word(path.with_suffix('.png'))}",
        )
    if suffix in LOSSY:
        log.warning("%s: JPEG changes mask values at borders; PNG keeps them", path)


def encode_mask(mask: U8, spec: ModelSpec, fmt: MaskFormat, suffix: str = ".png") -> bytes:
    """(H, W) class indices → a file's bytes. `fmt` comes from resolve_format, and is not rle.

    npy holds the indices themselves, uint8, every other format the values of the spec. Of
    probabilities (classes, H, W), 255 for 1, prob-npy holds all, prob those of the second class.
    """
    if fmt in NPY_FORMATS:
        return _npy(mask)
    if fmt == "prob":
        return _grey(mask[1], suffix.lower())
    if suffix.lower() != ".png":
        return _encode_with_pillow(mask, spec, fmt, suffix.lower())
    height, width = mask.shape
    if fmt == "bilevel":
        return _png(np.packbits(mask != spec.black, axis=1), width, height, 1, _GREY)
    pixels = mask_pixels(mask, spec)
    if fmt == "palette":
        table = colour_table(spec)
        depth = _palette_depth(len(table) // 3)
        if depth < 8:
            return _png(_packed(pixels, depth), width, height, depth, _PALETTE, table)
        return _png(pixels, width, height, depth, _PALETTE, table, strategy=zlib.Z_RLE)
    if spec.rgb_masks:
        return _png(pixels.reshape(height, -1), width, height, 8, _RGB)
    return _png(pixels, width, height, 8, _GREY, strategy=zlib.Z_RLE)


def _grey(pixels: U8, suffix: str) -> bytes:
    """(H, W) as it is."""
    if suffix == ".png":
        return _png(pixels, pixels.shape[1], pixels.shape[0], 8, _GREY)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, Image.registered_extensions()[suffix])
    return data.getvalue()


def _npy(mask: U8) -> bytes:
    data = io.BytesIO()
    np.save(data, mask, allow_pickle=False)
    return data.getvalue()


@cache
def colour_table(spec: ModelSpec) -> bytes:
    """RGB of every value up to the highest: of the palette that was trained on, else VOC's.

    No two alike, so that each tells its value.
    """
    highest = max(v for v in spec.mask_values if isinstance(v, int))
    known: Colours = {index: (r, g, b) for index, r, g, b in spec.palette}
    taken = set(known.values())
    for value in range(highest + 1):
        if value not in known:
            known[value] = next(c for c in map(class_colour, count(value)) if c not in taken)
            taken.add(known[value])
    return bytes(channel for value in range(highest + 1) for channel in known[value])


def _palette_depth(colours: int) -> int:
    """Bits that hold an index: two compress in a third of the time that eight take."""
    return next(bits for bits in (2, 4, 8) if colours <= 1 << bits)


def _packed(pixels: U8, bits: int) -> U8:
    """(H, W) values below 2**bits → (H, bytes), bits 2 or 4: the leftmost pixel is the highest."""
    height, width = pixels.shape
    rows = np.zeros((height, -(-width * bits // 8) * (8 // bits)), np.uint8)
    rows[:, :width] = pixels
    if bits == 4:
        pairs = rows.view("<u2")
        return (pairs << 4 | pairs >> 8).astype(np.uint8)
    # One product moves each of four bytes to its place in the highest; no two bits meet on the way.
    packed: U8 = (rows.view("<u4") * np.uint32(0x40100401) >> 24).astype(np.uint8)
    return packed


def _png(
    rows: U8,
    width: int,
    height: int,
    depth: int,
    colour_type: int,
    table: bytes = b"",
    strategy: int = zlib.Z_DEFAULT_STRATEGY,
) -> bytes:
    """A PNG of unfiltered rows (PNG specification, 11.2 and 9.2).

    strategy: zlib's. Z_RLE looks for runs of one byte alone: masks of a byte a pixel take up to
    two fifths less time with it and less room; fewer bits a pixel, colours and probabilities more.
    """
    filtered = np.zeros((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    if table:
        chunks.append(_chunk(b"PLTE", table))
    deflate = zlib.compressobj(ZLIB_LEVEL, strategy=strategy)
    chunks.append(_chunk(b"IDAT", deflate.compress(filtered.data) + deflate.flush()))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _encode_with_pillow(mask: U8, spec: ModelSpec, fmt: MaskFormat, suffix: str) -> bytes:
    if fmt == "bilevel":
        image = Image.fromarray(mask != spec.black)
        image = image.convert("L") if suffix in LOSSY else image
    else:
        image = Image.fromarray(mask_pixels(mask, spec))
        if fmt == "palette" and suffix not in LOSSY:
            image.putpalette(colour_table(spec))
    data = io.BytesIO()
    image.save(data, Image.registered_extensions()[suffix])
    return data.getvalue()
