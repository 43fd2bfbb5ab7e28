"""What the indices of a palette file mean: themselves, or the colours that they stand for.

Who writes a mask with a palette may number its colours as classes (Pascal VOC), or in the order in
which they occur in that one file (Pillow's GIF): an image of one colour is then index 0 always.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ImageError
from .spec import ModelSpec, PaletteEntry

Colour: TypeAlias = tuple[int, int, int]
Colours: TypeAlias = dict[int, Colour]
"""The colour of each index that a file uses; empty for a file without a palette."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)

HINT = "write masks as grey PNG, each class by its number"


def class_colour(value: int) -> Colour:
    """The colour map of PASCAL VOC: the bits of the value, spread over R, G and B from the top."""
    rgb = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            rgb[channel] |= (value >> channel & 1) << (7 - bit)
        value >>= 3
    return rgb[0], rgb[1], rgb[2]


def colours_in_use(image: Image.Image, indices: npt.NDArray[Any]) -> Colours:
    """Take the colours of the indices that occur; one that the palette lacks is black."""
    raw = image.getpalette("RGB") or []
    table = np.zeros((256, 3), np.uint8)
    table[: len(raw) // 3] = np.array(raw[: len(raw) // 3 * 3], np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)).tolist()
    return {i: (r, g, b) for i in used for r, g, b in [table[i].tolist()]}


def in_colour(indices: npt.NDArray[Any], colours: Colours) -> npt.NDArray[Any]:
    """(H, W) indices → (H, W, 3)."""
    table = np.zeros((256, 3), np.uint8)
    table[list(colours)] = list(colours.values())
    return np.asarray(table[indices])


def colours_tell_apart(colours: Colours) -> bool:
    """Whether no two indices have one colour."""
    return len(set(colours.values())) == len(colours)


def disagreeing(palettes: Sequence[Colours]) -> dict[int, str]:
    """Place of each palette that disagrees with those before it → how.

    They disagree where an index has two colours, or a colour two indices that no file uses side by
    side: who writes both in one file tells them apart by their number.
    """
    found: dict[int, str] = {}
    known: Colours = {}
    homes: dict[Colour, int] = {}
    twins = _twins(palettes)
    for place, colours in enumerate(palettes):
        for index, colour in colours.items():
            before, home = known.setdefault(index, colour), homes.setdefault(colour, index)
            if before != colour:
                found[place] = f"index {index} is {colour} here and {before} in others"
            elif home != index and colour not in twins:
                found[place] = f"{colour} is index {index} here and {home} in others"
    return found


def _twins(palettes: Sequence[Colours]) -> set[Colour]:
    """Colours that one file has at several indices."""
    found: set[Colour] = set()
    for colours in palettes:
        places: dict[Colour, int] = defaultdict(int)
        for colour in colours.values():
            places[colour] += 1
        found |= {colour for colour, count in places.items() if count > 1}
    return found


def merged_palette(palettes: Sequence[Colours]) -> tuple[PaletteEntry, ...]:
    """All indices of palettes that agree, with their colours."""
    known: Colours = {}
    for colours in palettes:
        known |= colours
    return tuple((index, *known[index]) for index in sorted(known))


def values_for_spec(
    indices: npt.NDArray[Any], colours: Colours, spec: ModelSpec, name: str
) -> npt.NDArray[Any]:
    """Give what the spec's values are to be compared with: indices (H, W) or colours (H, W, 3).

    Colours where the classes are colours. Else, by the palette that was trained on, if there was
    one. Else VOC's colours are their indices, grey colours that are classes' values are those
    values, black and white the two classes of two, as in a 1-bit file, and the rest are indices.
    Raises ImageError where neither can be told.
    """
    if spec.rgb_masks:
        return in_colour(indices, colours)
    if spec.palette:
        return _by_known_palette(indices, colours, spec, name)
    if not all(r == g == b for r, g, b in colours.values()) or not colours_tell_apart(colours):
        return indices
    if all(class_colour(index) == colour for index, colour in colours.items()):
        return indices
    if _are_greys_of(colours, spec):
        return in_colour(indices, colours)
    if spec.mask_classes == 2 and set(colours.values()) <= {BLACK, WHITE}:
        values = np.array([spec.bit_values[colours.get(i) == WHITE] for i in range(256)], np.uint8)
        return np.asarray(values[indices])
    # Numbered from 0 on, and the classes are not: the order in the file, and no class's number.
    counted = sorted(colours) == list(range(len(colours)))
    if counted and spec.mask_values != tuple(range(spec.mask_classes)):
        return in_colour(indices, colours)
    if list(colours) == [0] and colours[0] != (0, 0, 0):
        raise ImageError(
            f"{name} is of one colour, and says not of which class",
            seen=f"index 0 of the palette, which is {colours[0]}",
            hint=HINT,
        )
    return indices


def _are_greys_of(colours: Colours, spec: ModelSpec) -> bool:
    """Whether the greys are values."""
    values = {*spec.mask_values, spec.ignore_index}
    return all(grey in values for grey, _, _ in colours.values())


def _by_known_palette(
    indices: npt.NDArray[Any], colours: Colours, spec: ModelSpec, name: str
) -> npt.NDArray[Any]:
    known = {index: (r, g, b) for index, r, g, b in spec.palette}
    places: dict[Colour, list[int]] = defaultdict(list)
    for index, colour in known.items():
        places[colour].append(index)
    if all(known[i] == c if i in known else c not in places for i, c in colours.items()):
        return indices
    table = np.zeros(256, np.uint8)
    for index, colour in colours.items():
        if len(places[colour]) != 1:
            raise ImageError(
                f"{name} has another palette than the masks that were trained on",
                seen=f"index {index} is {colour}",
                expected=f"index {index} as {known.get(index, 'a colour of its own')}",
                hint=HINT,
            )
        table[index] = places[colour][0]
    return np.asarray(table[indices])
