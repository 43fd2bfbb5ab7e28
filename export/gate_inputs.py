"""What the gate looks at: read once before anything is built, at sizes that the plan takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..contract.errors import UserError
from ..contract.resize import resize_image
from ..contract.spec import ModelSpec
from ..contract.types import Size
from ..training.checkpoint import Golden, golden_part
from ..training.pairs import Pair, checked_pairs, load_pair
from .gate import GateCase, GateOptions
from .profiles import SizeRange
from .source import GOLDEN_CASES, Source, gate_inputs, load_inputs


@dataclass(frozen=True)
class GateInputs:
    """kind: "images", "golden" or "synthetic". pairs: the images again, with their masks.

    sizes: (H, W) of each image. bounded: an engine of other sizes refuses them.
    """

    kind: str
    items: list[Path] | list[Golden]
    pairs: list[Pair] = field(default_factory=list)
    sizes: tuple[Size, ...] = ()
    bounded: bool = False

    def cases(self, spec: ModelSpec) -> Iterator[GateCase]:
        """With the truth where masks were given, one at a time."""
        if self.pairs:
            return (GateCase(*load_pair(pair, spec)) for pair in self.pairs)
        return (GateCase(image, size) for image, size in load_inputs(self.items, spec))

    def golden(self, spec: ModelSpec) -> Iterator[Golden]:
        """Those that an engine directory keeps."""
        found = load_inputs(self.items[:GOLDEN_CASES], spec)
        return found if self.bounded else (golden_part(*case) for case in found)

    def within(self, ranges: Sequence[SizeRange], spec: ModelSpec) -> GateInputs:
        """At sizes that `ranges` hold; raise UserError for images of the user's that lie outside.

        What training stored or we drew is resized: it stands for pictures of any size.
        """
        if self.kind == "images":
            _require_within(self.sizes, ranges)
            return replace(self, bounded=True)
        found = [_fitted(case, ranges, spec) for case in load_inputs(self.items, spec)]
        return replace(self, items=found, sizes=tuple(size for _, size in found), bounded=True)


def read_gate_inputs(source: Source, gate: GateOptions) -> GateInputs:
    """Raise UserError for an image that cannot be read and a mask that does not fit to its own.

    Each is decoded here: a build may take long, and should not fail at its end.
    """
    items, kind = gate_inputs(source, gate.images)
    pairs = checked_pairs(gate.images, gate.masks) if gate.images and gate.masks else []
    found = GateInputs(kind, items, pairs)
    return replace(found, sizes=tuple(case.size for case in found.cases(source.spec)))


def _fitted(case: Golden, ranges: Sequence[SizeRange], spec: ModelSpec) -> Golden:
    image, size = case
    nearest = min((r.nearest(size) for r in ranges), key=lambda other: _distance(size, other))
    return resize_image(image, spec.input_size(nearest), spec.resize), nearest


def _distance(a: Size, b: Size) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _require_within(sizes: Sequence[Size], ranges: Sequence[SizeRange]) -> None:
    outside = [size for size in sizes if all(r.nearest(size) != size for r in ranges)]
    if not outside:
        return
    shown = [f"{height}x{width}" for height, width in dict.fromkeys(outside)]
    more = f" and {len(shown) - 4} more sizes" if len(shown) > 4 else ""
    raise UserError(
        f"{len(outside)} of the gate's images have a size that no profile of the plan holds",
        seen=", ".join(shown[:4]) + more,
        expected=" or ".join(map(str, ranges)),
        hint=" ".join(f"--size {size}" for size in shown[:4])
        + "   adds a profile each, --sizes-from DIR those of a folder",
    )
