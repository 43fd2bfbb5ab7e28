"""What the mask files of a set hold, before it is known which value is which class."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..contract.errors import ImageError
from ..contract.masks import distinct_values, read_stored
from ..contract.palettes import (
    HINT,
    Colours,
    colours_tell_apart,
    disagreeing,
    merged_palette,
)
from ..contract.spec import MaskValue, PaletteEntry
from .pairs import Pair, Problem

Values = frozenset[MaskValue]


@dataclass(frozen=True)
class MaskFile:
    """values: those that occur, of a palette its indices; colours: of these."""

    pair: Pair
    values: Values
    colours: Colours = field(default_factory=dict)
    one_bit: bool = False

    @property
    def coloured(self) -> bool:
        return any(isinstance(v, tuple) and len(set(v)) > 1 for v in self.values)


@dataclass(frozen=True)
class MaskSet:
    """Files whose values are comparable: all integers, or all triples but for 1-bit files.

    palette: what the indices look like, where indices are what counts.
    by_colour: palette files are taken by their colours.
    """

    files: list[MaskFile]
    problems: list[Problem]
    palette: tuple[PaletteEntry, ...] = ()
    by_colour: bool = False

    def values(self) -> Values:
        """All of them; 1-bit files add 0 and 1 only where no other tells the two values."""
        merged = Values().union(*(file.values for file in self.files if not file.one_bit))
        unsaid = len(merged) < 2 and not any(isinstance(v, tuple) for v in merged)
        return merged | {0, 1} if unsaid and any(f.one_bit for f in self.files) else merged


def read_mask_set(pairs: Sequence[Pair], wanted: Values) -> MaskSet:
    """Read all masks that can be read, and decide what their palettes mean.

    wanted: values that are known to be classes, where some are.
    """
    with ThreadPoolExecutor() as pool:
        found = [file for file in pool.map(_file, pairs) if file is not None]
    files = sorted(found, key=lambda file: file.pair.mask)
    palettes = [file.colours for file in files if file.colours]
    wrong = disagreeing(palettes)
    by_colour = _means_colours(files, bool(wrong), wanted)
    if wrong and not all(map(colours_tell_apart, palettes)):
        return MaskSet(files, _palette_problems(files, wrong))
    palette = () if by_colour else merged_palette(palettes)
    if by_colour:
        files = [_by_colour(file) for file in files]
    alike, problems = _alike(files, wanted)
    return MaskSet(alike, problems, palette, by_colour)


def _file(pair: Pair) -> MaskFile | None:
    """None for what cannot be read: who reads the pair says why."""
    try:
        mask = read_stored(pair.mask)
    except ImageError:
        return None
    values = frozenset(distinct_values(mask.pixels))
    return MaskFile(pair, values, mask.colours, mask.pixels.dtype == np.bool_)


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
    return MaskFile(file.pair, frozenset(file.colours.values()), file.colours)


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
        return [_changed(file, _as_integers(file.values)) for file in files], []
    good, problems = [], []
    for file in files:
        if file.one_bit or all(isinstance(v, tuple) for v in file.values):
            good.append(file)
        else:
            text = f"{file.pair.mask} holds single values, other masks hold colours"
            problems.append(Problem(file.pair.name, text))
    return good, problems


def _changed(file: MaskFile, values: Values) -> MaskFile:
    return MaskFile(file.pair, values, file.colours, file.one_bit)


def _as_integers(values: Values) -> Values:
    """Greys of three channels as one number; colours as they are."""
    return frozenset(v[0] if isinstance(v, tuple) and len(set(v)) == 1 else v for v in values)
