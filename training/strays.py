"""Values that became classes by nothing but their number: which of them may be stray pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contract.spec import MaskValue
from .mask_files import Counts, MaskFile, MaskSet, Values
from .options import values_text
from .pairs import Problem

FEW_PIXELS = 1e-3
"""Of all pixels of the masks: a value with less of them is asked about."""

FEW_MASKS = 0.02
"""Of all masks, and one in any case: a value in no more of them is asked about."""

LEAST_FILES = 3
"""Below so many files it says nothing that a value is in one of them only."""

SHOWN_VALUES = 8
SHOWN_FILES = 3


def named(files: Sequence[Path]) -> str:
    """The first three, and how many more."""
    more = f" (+{len(files) - SHOWN_FILES})" if len(files) > SHOWN_FILES else ""
    return ", ".join(map(str, files[:SHOWN_FILES])) + more


def rare(masks: Sequence[tuple[Path, Counts]], value: MaskValue) -> str | None:
    """Say how rare a value is; None for one that is not."""
    files = [path for path, counts in masks if value in counts]
    whole = sum(counts.total() for _, counts in masks)
    share = sum(counts[value] for _, counts in masks) / max(1, whole)
    few = len(masks) >= LEAST_FILES and len(files) <= max(1, FEW_MASKS * len(masks))
    if share >= FEW_PIXELS and not few:
        return None
    return f"{100 * share:.2g} % of the pixels, in {len(files)} of {len(masks)} masks"


def remedy(values: Sequence[MaskValue]) -> str:
    """How to say what is meant: one way names all files with the value, the other takes it."""
    return (
        "if it is a stray value, correct it: --mask-values with the classes' own values lists all "
        f"files that hold another; if it is a class, --mask-values {values_text(tuple(values))} "
        "says so"
    )


def revalued(files: Sequence[MaskFile], values: Sequence[MaskValue]) -> list[str]:
    """A warning where a few grey masks decide what the 1-bit masks are."""
    bits = [file.pair.mask for file in files if file.one_bit]
    greys = [file.pair.mask for file in files if not file.one_bit]
    if len(values) != 2 or not bits or len(greys) >= len(bits):
        return []
    whole = values_text(tuple(values))
    few = f"{len(greys)} of {len(files)} masks, {named(greys)}, hold {whole}"
    taken = f"the {len(bits)} 1-bit masks are taken for these values too"
    return [f"{few}: {taken}; if that is meant, --mask-values {whole} says so"]


def holders(masks: MaskSet, values: Sequence[MaskValue]) -> dict[MaskValue, list[Path]]:
    """Each value with the masks that hold it, the rarest first: it is the one to look for."""
    found: dict[MaskValue, list[Path]] = {value: [] for value in values}
    pixels = Counts()
    for file in masks.files:
        pixels.update(file.counts)
        for value in file.counts.keys() & found.keys():
            found[value].append(file.pair.mask)

    def rarity(value: MaskValue) -> tuple[int, int, tuple[int, ...]]:
        return len(found[value]), pixels[value], value_key(value)

    return {value: found[value] for value in sorted(values, key=rarity)}


def value_key(value: MaskValue) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def classes_without_strays(
    masks: MaskSet, found: dict[MaskValue, list[Path]], classes: int
) -> tuple[MaskValue, ...]:
    """Give the values of the classes where all others together have few pixels; else none.

    found: as of `holders`.
    """
    extra = set(list(found)[: max(0, len(found) - classes)])
    strays = sum(f.counts[value] for f in masks.files for value in extra & f.counts.keys())
    if not extra or strays >= FEW_PIXELS * sum(file.counts.total() for file in masks.files):
        return ()
    return tuple(sorted(set(found) - extra, key=value_key))


def stray_files(masks: MaskSet, found: dict[MaskValue, list[Path]], classes: int) -> list[Problem]:
    """Name every file with a value too many, where one line for all values cannot.

    found: as of `holders`. A value in most masks is a class that --classes leaves out.
    """
    most = len(masks.files) / 2
    extra = list(found)[: max(0, len(found) - classes)]
    strays = {value for value in extra if len(found[value]) <= most}
    if len(found) <= SHOWN_VALUES and all(len(found[v]) <= SHOWN_FILES for v in strays):
        return []
    return [
        Problem(file.pair.name, f"{file.pair.mask} holds {_listed(file, strays & file.values)}")
        for file in masks.files
        if strays & file.values
    ]


def _listed(file: MaskFile, strays: Values | set[MaskValue]) -> str:
    values = sorted(strays, key=value_key)
    whole = file.counts.total()
    pixels = [f"{v} ({file.counts[v]} of {whole} pixels)" for v in values[:SHOWN_VALUES]]
    more = f" … ({len(values)} values)" if len(values) > SHOWN_VALUES else ""
    return f"values that most masks lack: {', '.join(pixels)}{more}"
