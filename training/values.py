"""The values that the masks hold → the classes of the model spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..contract.masks import JPEG_HINT, StoredMask, is_jpeg
from ..contract.spec import MaskValue, ModelSpec, ignored_values
from ..contract.types import NO_CLASS
from .known import Known
from .mask_files import Counts, MaskFile, MaskSet, Values, read_mask_set
from .options import TrainOptions, values_text
from .pairs import Pair, Problem
from .strays import (
    LEAST_FILES,
    SHOWN_VALUES,
    classes_without_strays,
    holders,
    named,
    rare,
    remedy,
    revalued,
    stray_files,
    value_key,
)

BLACK_AND_WHITE = (0, 255)
MOST_CLASSES = 20
"""Of so many values each may be a class; more are those of a photograph, or of a JPEG."""


@dataclass(frozen=True)
class Found:
    """known: the spec's mask values are those of the masks. warnings: of what trains, but badly.

    decoded: masks that were read on the way.
    """

    spec: ModelSpec
    known: bool
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    decoded: dict[Path, StoredMask] = field(default_factory=dict)


def spec_from_masks(
    options: TrainOptions,
    start: ModelSpec | None,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    room: int = 0,
    earlier: Known | None = None,
) -> Found:
    """Make the spec with the values that the masks hold; or with none of them, and say why.

    room: bytes for decoded masks. earlier: what is known of masks from an earlier start.
    """
    wanted = options.mask_values or (start.mask_values if start else ())
    masks = read_mask_set([*train, *validation], frozenset(wanted), room, earlier)
    ignored = ignored_values(options.ignore_index)
    values = _chosen(options, start, masks.values() - ignored)
    known = len(values) == max(2, options.classes)
    problems = list(masks.problems)
    if not known and not problems:
        problems += _count_problems(masks, values, options)
    spec = _spec(options, start, values if known else (), masks)
    if not known or not masks.files:
        return Found(spec, known, problems, decoded=masks.decoded)
    parts = _Parts(masks, spec, ignored, set(train))
    problems += _unknown(masks, spec, ignored) + parts.problems()
    counted = values not in (wanted, tuple(range(len(values))), BLACK_AND_WHITE)
    warnings = [*parts.warnings(counted), *(revalued(masks.files, values) if counted else [])]
    return Found(spec, known, problems, [] if problems else warnings, masks.decoded)


def _spec(
    options: TrainOptions, start: ModelSpec | None, values: Sequence[MaskValue], masks: MaskSet
) -> ModelSpec:
    same = start if start is not None and tuple(values) == start.mask_values else None
    palette = same.palette if same and not masks.palette and not masks.by_colour else masks.palette
    return ModelSpec(
        channels=options.channels,
        classes=options.classes,
        class_names=options.class_names or (same.class_names if same else ()),
        mask_values=tuple(values),
        width=options.width,
        bilinear=options.bilinear,
        scale=options.scale,
        # Without values the spec has 0, 1, …: it stands for nothing, and must not clash.
        ignore_index=options.ignore_index if values else None,
        palette=palette,
        bit_depth=options.bit_depth or (start.bit_depth if start else None),
    )


def _chosen(options: TrainOptions, start: ModelSpec | None, found: Values) -> tuple[MaskValue, ...]:
    """Those that were named; those of the start; the numbers of the classes; else those found."""
    count = max(2, options.classes)
    if options.mask_values:
        return options.mask_values
    ignored = ignored_values(options.ignore_index)
    kept = set(start.mask_values) if start is not None else set()
    if start is not None and found <= kept and not ignored & kept:
        return start.mask_values
    numbers = tuple(range(count))
    if found and found <= set(numbers) and not ignored & set(numbers):
        return numbers
    return tuple(sorted(found, key=value_key))


def _count_problems(
    masks: MaskSet, values: Sequence[MaskValue], options: TrainOptions
) -> list[Problem]:
    """Name each value with files that hold it, and each file if these do not go into one line."""
    found = holders(masks, values)
    listed = [f"{value} in {named(files)}" for value, files in list(found.items())[:SHOWN_VALUES]]
    more = f" … ({len(values)} values)" if len(values) > SHOWN_VALUES else ""
    jpeg = f"; {JPEG_HINT}" if any(is_jpeg(file.pair.mask) for file in masks.files) else ""
    held = f"the masks hold {len(values)} values"
    if len(values) >= NO_CLASS:
        held = "the masks hold more values than there can be classes" + f", {len(values)}"
    text = (
        f"{held}, --classes {options.classes} needs {max(2, options.classes)}: "
        f"{'; '.join(listed) or 'none'}{more}; --mask-values names those of the classes, "
        f"--ignore-index one that is none{jpeg}"
    )
    count = max(2, options.classes)
    likely = classes_without_strays(masks, found, count)
    hint = f"--mask-values {values_text(likely) if likely else '0,1,…'}"
    if not likely and 2 < len(values) <= MOST_CLASSES:
        hint = f"--classes {len(values)}"
    return [Problem("", text, hint), *stray_files(masks, found, count)]


def _unknown(masks: MaskSet, spec: ModelSpec, ignored: Values) -> list[Problem]:
    """Values of palette files that were taken by colour: no reader of one file alone sees them."""
    found = []
    for file in masks.files if masks.by_colour else ():
        others = sorted(file.values - set(spec.mask_values) - ignored, key=value_key)
        if file.colours and others:
            text = f"{file.pair.mask} holds colours that no class has: "
            listed = ", ".join(map(str, others[:SHOWN_VALUES]))
            found.append(Problem(file.pair.name, f"{text}{listed}, expected {spec.mask_values}"))
    return found


class _Parts:
    """Which class has pixels in which files of training and of validation."""

    def __init__(self, masks: MaskSet, spec: ModelSpec, ignored: Values, train: set[Pair]) -> None:
        self._spec = spec
        self._train: list[tuple[Path, Counts]] = []
        self._validation: list[tuple[Path, Counts]] = []
        for file in masks.files:
            part = self._train if file.pair in train else self._validation
            counts = _as_classes(file, spec)
            part.append((file.pair.mask, Counts({v: counts[v] for v in counts.keys() - ignored})))

    def problems(self) -> list[Problem]:
        held = Values().union(*(counts for _, counts in self._train))
        found = []
        if self._train and len(held) < 2:
            only = f"nothing but {self._told(min(held, key=value_key))}" if held else "no class"
            found.append(Problem("", f"the training masks hold {only}: there is nothing to learn"))
        if self._validation and not any(counts for _, counts in self._validation):
            text = "no pixel of the validation masks is of a class: there is nothing to score on"
            found.append(Problem("", text))
        return found

    def warnings(self, counted: bool) -> list[str]:
        """counted: the values are classes only because their number is that of the classes."""
        found, masks = [], [*self._train, *self._validation]
        for value in self._spec.mask_values:
            rarity = rare(masks, value) if counted else None
            told, files = self._told(value), self._holders(self._train, value)
            if not files:
                others = self._holders(self._validation, value)
                seen = f"; it is in {named(others)} of the validation" if others else ""
                absent = f"no training mask has a pixel of {told}"
                found.append(f"{absent}: it cannot be learnt{seen}")
            elif rarity is not None and len(files) == 1 and len(self._train) >= LEAST_FILES:
                alone = f"{told} is in one training mask only, {files[0]}"
                found.append(f"{alone}: {rarity}; {remedy(self._spec.mask_values)}")
            elif rarity is not None:
                few = f"{told} is a class only because the number of values is --classes"
                seen = f"{rarity}: {named(files)}"
                found.append(f"{few}, and is rare: {seen}; {remedy(self._spec.mask_values)}")
        return found + self._of_validation()

    def _of_validation(self) -> list[str]:
        background = self._spec.mask_values[0]
        foreground = any(counts.keys() - {background} for _, counts in self._validation)
        if foreground or not self._validation:
            return []
        return ["no validation mask has a pixel of the foreground: no epoch has a score of worth"]

    def _told(self, value: MaskValue) -> str:
        if value not in self._spec.mask_values:
            return f"value {value} (of no class)"
        name = self._spec.class_names[self._spec.mask_values.index(value)]
        return f"value {value} ({name})"

    def _holders(self, part: Sequence[tuple[Path, Counts]], value: MaskValue) -> list[Path]:
        return [path for path, counts in part if value in counts]


def _as_classes(file: MaskFile, spec: ModelSpec) -> Counts:
    """A 1-bit file holds the two classes of two, whatever their values."""
    if file.one_bit and spec.mask_classes == 2:
        values = spec.bit_values
        return file.with_values(lambda bit: values[bit] if isinstance(bit, int) else bit).counts
    return file.counts
