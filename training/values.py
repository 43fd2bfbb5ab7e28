"""The values that the masks hold → the classes of the model spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contract.errors import ImageError
from ..contract.masks import mask_values_from_files
from ..contract.spec import MaskValue, ModelSpec
from .options import TrainOptions
from .pairs import Pair


def spec_from_masks(
    options: TrainOptions, start: ModelSpec | None, pairs: Sequence[Pair]
) -> tuple[ModelSpec, list[str]]:
    """Make the spec with the values that the masks hold; or with none of them, and say why."""
    values = _mask_values([pair.mask for pair in pairs], options.ignore_index)
    names = options.class_names
    if start is not None and set(values) <= set(start.mask_values):
        values = start.mask_values
        names = names or start.class_names
    problems = []
    if len(values) != max(2, options.classes):
        problems.append(_value_problem(values, options, pairs))
        values = ()
    spec = ModelSpec(
        channels=options.channels,
        classes=options.classes,
        class_names=names,
        mask_values=values,
        width=options.width,
        bilinear=options.bilinear,
        scale=options.scale,
        ignore_index=options.ignore_index,
    )
    return spec, problems


def _mask_values(paths: Sequence[Path], ignored: int | None) -> tuple[MaskValue, ...]:
    """Collect the values of all masks that can be read, without the ignored one."""
    try:
        values = mask_values_from_files(paths)
    except ImageError:
        readable = [path for path in paths if _values_or_none(path) is not None]
        if len(readable) == len(paths):
            raise
        values = mask_values_from_files(readable)
    return tuple(v for v in values if v not in (ignored, (ignored,) * 3))


def _values_or_none(path: Path) -> tuple[MaskValue, ...] | None:
    try:
        return mask_values_from_files([path])
    except ImageError:
        return None


def _value_problem(
    values: Sequence[MaskValue], options: TrainOptions, pairs: Sequence[Pair]
) -> str:
    """Name each value with the files that hold it, rare ones by name."""
    holders: dict[MaskValue, list[Path]] = {value: [] for value in values}
    for pair in pairs:
        for value in set(_values_or_none(pair.mask) or ()) & holders.keys():
            holders[value].append(pair.mask)
    shown = sorted(holders.items(), key=lambda item: -len(item[1]))
    listed = [f"{v} in {files[0] if len(files) == 1 else len(files)}" for v, files in shown[:12]]
    more = f" … ({len(values)} values)" if len(values) > 12 else ""
    return (
        f"the masks hold {len(values)} values, --classes {options.classes} needs "
        f"{max(2, options.classes)}: value in files: {', '.join(listed)}{more}"
    )
