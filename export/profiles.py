"""The shapes that a plan is built for: one optimization profile a range of image sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import ImageError, UserError
from ..contract.files import image_paths
from ..contract.images import image_size
from ..contract.spec import ModelSpec
from ..contract.types import Size

MAX_PROFILES = 4
"""Profiles that --sizes-from makes: each costs build time and memory."""

Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class SizeRange:
    """Image sizes (height, width) from least to most in each side; best is the tuned one."""

    least: Size
    best: Size
    most: Size

    def __post_init__(self) -> None:
        for low, best, high in zip(self.least, self.best, self.most, strict=True):
            if not 1 <= low <= best <= high:
                raise UserError(
                    "a range of sizes goes from the least to the most",
                    seen=f"{self.least} to {self.most}",
                    hint="--size 200x300..400x600",
                )

    def __str__(self) -> str:
        least, most = ("x".join(map(str, size)) for size in (self.least, self.most))
        return least if least == most else f"{least}..{most}"

    def nearest(self, size: Size) -> Size:
        """`size` itself where it lies within."""
        height, width = (
            min(max(side, low), high)
            for side, low, high in zip(size, self.least, self.most, strict=True)
        )
        return height, width


def range_of_sizes(sizes: Sequence[Size]) -> SizeRange:
    """Span all of them; the first is the best."""
    heights, widths = [s[0] for s in sizes], [s[1] for s in sizes]
    return SizeRange((min(heights), min(widths)), sizes[0], (max(heights), max(widths)))


def range_of_gate(sizes: Sequence[Size]) -> SizeRange:
    """Span the sizes of all gate inputs; the most frequent one is the best."""
    return range_of_sizes([size for size, _ in Counter(sizes).most_common()])


def ranges_from_profiles(profiles: Sequence[dict[str, Any]]) -> tuple[SizeRange, ...]:
    """The image sizes of a manifest's profiles."""
    triples = (map(tuple, profile["size_like"]) for profile in profiles)
    return tuple(SizeRange(*triple) for triple in triples)


def profile_shapes(
    spec: ModelSpec, batch: tuple[int, int, int], sizes: SizeRange
) -> dict[str, Triple]:
    """Input name → (least, best, most) shape, for images of `sizes`."""
    triple = (sizes.least, sizes.best, sizes.most)
    inputs = [(n, *spec.input_size(s), spec.channels) for n, s in zip(batch, triple, strict=True)]
    return {"image": (inputs[0], inputs[1], inputs[2]), "size_like": triple}


def ranges_from_images(folder: Path) -> tuple[SizeRange, ...]:
    """Profiles for the sizes of a folder's images, read from their headers.

    Up to MAX_PROFILES sizes get a profile each, the most frequent first; more are sorted by
    their pixels and cut into MAX_PROFILES ranges of as many images each.
    Raises UserError when no image of the folder can be read.
    """
    counts = Counter(_sizes(folder))
    common = [size for size, _ in counts.most_common()]
    if len(common) <= MAX_PROFILES:
        return tuple(SizeRange(size, size, size) for size in common)
    return tuple(
        range_of_sizes(sorted(group, key=lambda size: -counts[size])) for group in _cut(counts)
    )


def _cut(counts: Counter[Size]) -> list[list[Size]]:
    groups: list[list[Size]] = [[] for _ in range(MAX_PROFILES)]
    seen, total = 0, counts.total()
    for size in sorted(counts, key=lambda size: (size[0] * size[1], size)):
        groups[min(MAX_PROFILES - 1, seen * MAX_PROFILES // total)].append(size)
        seen += counts[size]
    return [group for group in groups if group]


def _sizes(folder: Path) -> list[Size]:
    """Upright sizes; a file that is no image is passed over: the job itself reports it."""
    sizes = []
    reasons: list[str] = []
    for path in image_paths(folder):
        try:
            sizes.append(image_size(path))
        except ImageError as error:
            reasons.append(error.reason)
    if not sizes:
        raise UserError(f"no image of {folder} can be read", seen=reasons[0])
    return sizes
