"""What a device can do at most, as it was measured, and the share of it that a row reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .machine import CROWDED

UNKNOWN, ABOVE = "peak unknown", "above the peak"
"""In place of a share; what was wrong with the peak is a warning of the report."""


@dataclass(frozen=True)
class Peak:
    """The best rate seen, operations a second, and who reached it with which matrix."""

    precision: str
    ops: float
    by: str


@dataclass(frozen=True)
class PeakShare:
    """0 to 1; None where it cannot be told: reason says why, '' where there is no peak at all."""

    value: float | None
    reason: str = ""

    @property
    def text(self) -> str:
        return self.reason if self.value is None else f"{self.value:.0%}"


@dataclass(frozen=True)
class Peaks:
    """copy: bytes a second that a copy reads and writes together; 0 when not probed.

    matrices: the best products of matrices, where something else was the best in `products`.
    reason: why a probe that was asked for has found nothing. others: share of the cores that they
    kept busy meanwhile, as for a row; None where it is not known, or on a GPU. on_gpu: they are of
    a GPU, and say nothing of a row that ran on the CPU beside it.
    """

    products: tuple[Peak, ...] = ()
    copy: float = 0.0
    reason: str = ""
    others: float | None = None
    on_gpu: bool = False
    matrices: tuple[Peak, ...] = ()

    def of_device(self, on_gpu: bool) -> Peaks:
        """These, or none for a row that ran where they were not probed."""
        return self if on_gpu == self.on_gpu else Peaks()

    @property
    def crowd(self) -> str:
        """Why no share of these peaks is told, or ''."""
        if self.others is None or self.others <= CROWDED:
            return ""
        return f"others kept {self.others:.0%} of the cores busy while the peak was probed"

    def share(self, achieved: float, precision: str) -> PeakShare:
        """Of `achieved` operations a second."""
        peak = self.of(precision)
        if peak is None:
            return PeakShare(None)
        if self.crowd:
            return PeakShare(None, UNKNOWN)
        if achieved > peak.ops:
            return PeakShare(None, ABOVE)
        return PeakShare(achieved / peak.ops)

    def of(self, precision: str) -> Peak | None:
        return next((peak for peak in self.products if peak.precision == precision), None)

    def of_matrices(self, achieved: float, precision: str) -> float | None:
        """Share of the best product of matrices, which is no peak: it may be above 1."""
        if self.crowd:
            return None
        found = (p.ops for p in (*self.matrices, *self.products) if p.precision == precision)
        return next((achieved / ops for ops in found), None)


def peaks_from_dict(raw: dict[str, Any]) -> Peaks:
    """Reports of before have no matrices."""
    kinds = {"products": raw["products"], "matrices": raw.get("matrices", ())}
    found = {kind: tuple(Peak(**peak) for peak in peaks) for kind, peaks in kinds.items()}
    return Peaks(**{**raw, **found})
