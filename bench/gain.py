"""The speed-up of a row with the range that the spreads allow, or why none can be told."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .machine import CROWDED, NOISY
from .measure import spread
from .result import Bench, Row

WORTHLESS = 5 * NOISY
"""Spread of the passes above which a ratio of them says nothing."""
OVERLOADED = 1.5
"""Load before the bench, a core, that counts as crowded where the share is not known."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """ratio: of the medians. low, high: slowest pass over fastest, and the other way round.

    reason: why it is not to be told; then it is no number of anything.
    """

    ratio: float
    low: float
    high: float
    wide: bool
    reason: str = ""

    @property
    def text(self) -> str:
        """`4.00×`, with the range where either side's passes differ; the reason for none."""
        if self.reason:
            return f"{self.reason}: no speed-up"
        told = f"{self.ratio:.2f}×"
        return f"{told} ({_times(self.low)}–{_times(self.high)})" if self.wide else told


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def gain_from_rates(
    mine: Sequence[float], theirs: Sequence[float], reason: str = "", processes: bool = False
) -> Gain:
    """Of two rows' passes, images a second.

    processes: theirs are of one each, which may differ in PyTorch's own way: the range tells.
    """
    widest = max(spread(mine), spread(theirs))
    passes = spread(mine) if processes else widest
    if not reason and passes > WORTHLESS:
        reason = f"passes differ by ±{passes:.0%}"
    return Gain(
        ratio=statistics.median(mine) / statistics.median(theirs),
        low=min(mine) / max(theirs),
        high=max(mine) / min(theirs),
        wide=widest > NOISY,
        reason=reason,
    )


def gain_of(row: Row, bench: Bench) -> Gain | None:
    """Files to files against the baseline; None where the masks do not allow one."""
    baseline = bench.rows[0]
    if not row.trusted or row.result is None or baseline.result is None:
        return None
    if row is baseline:
        return Gain(ratio=1, low=1, high=1, wide=False)
    reason = _crowd(row, bench) or _crowd(baseline, bench)
    mine, theirs = row.result.files_to_files, baseline.result.files_to_files
    return gain_from_rates(mine, theirs, reason, processes=baseline.result.again > 0)


def speed_up(row: Row, bench: Bench) -> float | None:
    """The ratio of `gain_of`, where it may be told."""
    gain = gain_of(row, bench)
    return None if gain is None or gain.reason else gain.ratio


def _crowd(row: Row, bench: Bench) -> str:
    """What others did to the machine while the row ran, where it was too much; else ''."""
    others = row.result.others if row.result else None
    if others is not None:
        busy = f"others kept {others:.0%} of the cores busy during {row.name}"
        return busy if others > CROWDED else ""
    load = bench.load_before
    crowded = load is not None and load > OVERLOADED * bench.cores
    return f"load by others {load}" if crowded else ""
