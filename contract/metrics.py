"""One confusion matrix over all pixels, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .types import NO_CLASS, U8


@dataclass(frozen=True)
class ClassScore:
    """iou and dice are None for a class that neither side has."""

    name: str
    iou: float | None
    dice: float | None


@dataclass(frozen=True)
class Scores:
    """Means over the foreground classes (1 and up) that either side has; None where none is."""

    foreground_miou: float | None
    foreground_dice: float | None
    pixel_accuracy: float | None
    classes: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the stable JSON of `evaluate --json`."""
        return {**asdict(self), "classes": [asdict(score) for score in self.classes]}


class ConfusionMatrix:
    """Pixels counted by true class (row) and predicted class (column).

    One more column counts the pixels whose prediction is no class: wrong, never left out.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts: npt.NDArray[np.int64] = np.zeros((classes, classes + 1), np.int64)

    def update(self, truth: U8, predicted: U8) -> None:
        """Count two masks of one shape; pixels whose truth is NO_CLASS are left out.

        Raises ValueError when the shapes differ or the truth has a class that is not there.
        """
        _require_equal_shapes(truth, predicted)
        side = self.classes + 1
        unknown = (truth >= self.classes) & (truth != NO_CLASS)
        if unknown.any():
            raise ValueError(f"class {truth[unknown][0]} in a truth of {self.classes} classes")
        rows = np.minimum(truth, self.classes).astype(np.intp)
        columns = np.minimum(predicted, self.classes)
        counts = np.bincount((rows * side + columns).ravel(), minlength=side * side)
        self.counts += counts.reshape(side, side)[: self.classes]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another's counts to these."""
        if other.classes != self.classes:
            raise ValueError(f"{other.classes} classes merged into {self.classes}")
        self.counts += other.counts

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        total = ConfusionMatrix(self.classes)
        total.merge(self)
        total.merge(other)
        return total

    def scores(self, names: Sequence[str]) -> Scores:
        """Score all that was counted; one name a class."""
        if len(names) != self.classes:
            raise ValueError(f"{len(names)} names for {self.classes} classes")
        hits = self.counts.diagonal()
        true = self.counts.sum(1)
        predicted = self.counts[:, :-1].sum(0)
        classes = tuple(
            ClassScore(name, _ratio(h, t + p - h), _ratio(2 * h, t + p))
            for name, h, t, p in zip(names, hits, true, predicted, strict=True)
        )
        return Scores(
            foreground_miou=_mean([c.iou for c in classes[1:]]),
            foreground_dice=_mean([c.dice for c in classes[1:]]),
            pixel_accuracy=_ratio(hits.sum(), self.counts.sum()),
            classes=classes,
        )


def _require_equal_shapes(a: U8, b: U8) -> None:
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}")


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None
