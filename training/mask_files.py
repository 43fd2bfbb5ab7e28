"""What the mask files of a set hold, before it is known which value is which class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.cores import usable_cores
from ..contract.errors import ImageError
from ..contract.masks import JPEG_HINT, MaskPixels, StoredMask, is_jpeg, read_stored
from ..contract.palettes import (
    HINT,
    Colours,
    colours_tell_apart,
    disagreeing,
    merged_palette,
)
from ..contract.spec import MaskValue, PaletteEntry, mask_values_from_json
from .ahead import map_ahead
from .known import Known, state_of
from .pairs import Pair, Problem
from .ranks import progress_of_first

MOST_VALUES = 4096
"""More colours in a file are those of a photograph; there can be 254 classes."""

Values = frozenset[MaskValue]
Counts = Counter[MaskValue]
"""Pixels of each value."""


@dataclass(frozen=True)
class MaskFile:
    """counts: of the values that occur, of a palette its indices; colours: of these."""

    pair: Pair
    counts: Counts
    colours: Colours = field(default_factory=dict)
    one_bit: bool = False

    @property
    def values(self) -> Values:
        return frozenset(self.counts)

    def with_values(self, change: Callable[[MaskValue], MaskValue]) -> MaskFile:
        counts = Counts()
        for value, count in self.counts.items():
            counts[change(value)] += count
        return replace(self, counts=counts)

    @property
    def coloured(self) -> bool:
        return any(isinstance(v, tuple) and len(set(v)) > 1 for v in self.values)


@dataclass(frozen=True)
class MaskSet:
    """Files whose values are comparable: all integers, or all triples but for 1-bit files.

    palette: what the indices look like, where indices are what counts.
    by_colour: palette files are taken by their colours.
    decoded: as many of the masks as there was room for.
    """

    files: list[MaskFile]
    problems: list[Problem]
    palette: tuple[PaletteEntry, ...] = ()
    by_colour: bool = False
    decoded: dict[Path, StoredMask] = field(default_factory=dict)

    def values(self) -> Values:
        """All of them; 1-bit files add 0 and 1 only where no other tells the two values."""
        merged = Values().union(*(file.values for file in self.files if not file.one_bit))
        unsaid = len(merged) < 2 and not any(isinstance(v, tuple) for v in merged)
        return merged | {0, 1} if unsaid and any(f.one_bit for f in self.files) else merged


def read_mask_set(
    pairs: Sequence[Pair], wanted: Values, room: int = 0, known: Known | None = None
) -> MaskSet:
    """Read all masks that can be read, and decide what their palettes mean.

    wanted: values that are known to be classes, where some are.
    room: bytes for decoded masks, which whoever needs them next need not read again.
    known: what an earlier start found in masks, which are not read; it takes what is found now.
    """
    found, photographs, decoded = _read_all(pairs, room, known)
    files = sorted(found, key=lambda file: file.pair.mask)
    palettes = [file.colours for file in files if file.colours]
    wrong = disagreeing(palettes)
    by_colour = _means_colours(files, bool(wrong), wanted)
    if wrong and not all(map(colours_tell_apart, palettes)):
        wrong_ones = _palette_problems(files, wrong)
        return MaskSet(files, photographs + wrong_ones, decoded=decoded)
    palette = () if by_colour else merged_palette(palettes)
    if by_colour:
        files = [_by_colour(file) for file in files]
    alike, problems = _alike(files, wanted)
    return MaskSet(alike, photographs + problems, palette, by_colour, decoded)


def _read_all(
    pairs: Sequence[Pair], room: int, known: Known | None
) -> tuple[list[MaskFile], list[Problem], dict[Path, StoredMask]]:
    files: list[MaskFile] = []
    photographs: list[Problem] = []
    decoded: dict[Path, StoredMask] = {}
    with progress_of_first("read masks", len(pairs), "masks") as advance:
        for read in map_ahead(partial(_file, known=known), pairs, usable_cores()):
            advance(1)
            if isinstance(read, Problem):
                photographs.append(read)
                continue
            if read is None:
                continue
            file, mask = read
            files.append(file)
            if mask is not None and mask.pixels.nbytes <= room:
                room -= mask.pixels.nbytes
                decoded[mask.path] = mask
    return files, photographs, decoded


def _file(pair: Pair, known: Known | None) -> tuple[MaskFile, StoredMask | None] | Problem | None:
    """None for what cannot be read: who reads the pair says why."""
    state = state_of(pair.mask) if known else None
    file = _from_json(pair, known.get(state, pair.name)) if known else None
    mask = None
    if file is None:
        try:
            mask = read_stored(pair.mask)
        except ImageError:
            return None
        counts = _counts(mask.pixels)
        if isinstance(counts, int):
            return _photograph(pair, counts)
        file = MaskFile(pair, counts, mask.colours, mask.pixels.dtype == np.bool_)
        if known:
            known.put(state, pair.name, _to_json(file))
    return file, mask


def _to_json(file: MaskFile) -> Any:
    return [list(file.counts), list(file.counts.values()), list(file.colours.items()), file.one_bit]


def _from_json(pair: Pair, found: Any) -> MaskFile | None:
    if found is None:
        return None
    values, counts, colours, one_bit = found
    counted = Counts(dict(zip(mask_values_from_json(values), counts, strict=True)))
    return MaskFile(pair, counted, {index: tuple(colour) for index, colour in colours}, one_bit)


def _photograph(pair: Pair, colours: int) -> Problem:
    seen = f"{pair.mask} holds {colours:,} colours, as a photograph does"
    jpeg = f"; if it is a mask: {JPEG_HINT}" if is_jpeg(pair.mask) else ""
    return Problem(pair.name, f"{seen}: are --images and --masks swapped?{jpeg}")


def _counts(pixels: MaskPixels) -> Counts | int:
    """Integers of (H, W), triples of (H, W, 3); of too many colours nothing but their number."""
    if pixels.ndim == 2:
        found = np.bincount(pixels.astype(np.uint8).ravel(), minlength=256)
        return Counter({value: int(found[value]) for value in np.flatnonzero(found).tolist()})
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    packed, found = np.unique(red << 16 | green << 8 | blue, return_counts=True)
    if len(packed) > MOST_VALUES:
        return len(packed)
    colours = [(value >> 16, value >> 8 & 255, value & 255) for value in packed.tolist()]
    return Counter(dict(zip(colours, found.tolist(), strict=True)))


def _means_colours(files: Sequence[MaskFile], wrong: bool, wanted: Values) -> bool:
    """Indices, unless they disagree, or only their colours can be the classes of the others."""
    palettes = [file for file in files if file.colours]
    if not palettes:
        return False
    if wrong or any(f.coloured for f in files) or any(isinstance(v, tuple) for v in wanted):
        return True
    known = wanted or Values().union(
        *(_as_integers(f.values) for f in files if not f.colours and not f.one_bit)
    )
    indices = Values().union(*(file.values for file in palettes))
    greys = Values().union(*(_as_integers(_by_colour(file).values) for file in palettes))
    apart = all(colours_tell_apart(file.colours) for file in palettes)
    return bool(known) and apart and not indices <= known and greys <= known


def _by_colour(file: MaskFile) -> MaskFile:
    if not file.colours:
        return file
    return file.with_values(lambda index: file.colours[index] if isinstance(index, int) else index)


def _palette_problems(files: Sequence[MaskFile], wrong: dict[int, str]) -> list[Problem]:
    palettes = [file for file in files if file.colours]
    found = []
    for place, how in wrong.items():
        file = palettes[place]
        other = f"{file.pair.mask} has another palette than the masks before it: {how}"
        text = f"{other}; and colours alone do not tell the classes apart; {HINT}"
        found.append(Problem(file.pair.name, text))
    return found


def _alike(files: Sequence[MaskFile], wanted: Values) -> tuple[list[MaskFile], list[Problem]]:
    """Grey triples as integers, unless the set has colours: then every file must have three."""
    triples = any(isinstance(v, tuple) for file in files for v in file.values)
    colours = triples and any(isinstance(v, tuple) for v in wanted)
    if not colours and not any(file.coloured for file in files):
        return [file.with_values(_as_integer) for file in files], []
    good, problems = [], []
    for file in files:
        if file.one_bit or all(isinstance(v, tuple) for v in file.values):
            good.append(file)
        else:
            text = f"{file.pair.mask} holds single values, other masks hold colours"
            problems.append(Problem(file.pair.name, text))
    return good, problems


def _as_integer(value: MaskValue) -> MaskValue:
    """A grey of three channels as one number; a colour as it is."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _as_integers(values: Values) -> Values:
    return frozenset(map(_as_integer, values))
