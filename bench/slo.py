"""The highest throughput under a bound on the latency, and the flags that give it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..contract.errors import UserError
from .sweep import Sweep, SweepPoint


@dataclass(frozen=True)
class Slo:
    """A bound on a percentile of the latency, in milliseconds."""

    percentile: str
    milliseconds: float

    def met_by(self, point: SweepPoint) -> bool:
        return float(getattr(point.latency, self.percentile)) <= self.milliseconds


def slo_from_text(text: str) -> Slo:
    """`p99=20ms`, `p50=0.1s`. Raises UserError for anything else."""
    found = re.fullmatch(r"(p50|p95|p99)=(\d+(?:\.\d+)?)(ms|s)", text)
    if found is None or not float(found[2]):
        raise UserError(
            "no such bound on the latency",
            seen=text,
            expected="p50, p95 or p99, = and a time: p99=20ms",
            hint="--slo p99=20ms",
        )
    return Slo(found[1], float(found[2]) * (1000 if found[3] == "s" else 1))


def best_under(sweep: Sweep, slo: Slo, slots_flag: bool) -> SweepPoint | None:
    """The fastest point under the bound that the flags of `predict` can give."""
    reachable = [
        point
        for point in sweep.points
        if point.size == sweep.size and (slots_flag or point.slots == sweep.default_slots)
    ]
    return max(filter(slo.met_by, reachable), key=lambda p: p.rate, default=None)


def slo_lines(sweep: Sweep, slo: Slo, slots_flag: bool) -> list[str]:
    """The answer to --slo: the throughput and the commands that give it, or what is nearest."""
    bound = f"{slo.percentile} ≤ {slo.milliseconds:g} ms"
    best = best_under(sweep, slo, slots_flag)
    if best is None:
        own = [point for point in sweep.points if point.size == sweep.size]
        nearest = min(own, key=lambda p: getattr(p.latency, slo.percentile), default=None)
        if nearest is None:
            return [f"{bound}: nothing was swept ({sweep.reason or 'no points'})"]
        found = getattr(nearest.latency, slo.percentile)
        return [
            f"{bound}: no setting meets it; the lowest is {found:.3g} ms, at "
            f"batch {nearest.batch}, slots {nearest.slots}"
        ]
    flags = f"--batch {best.batch}" + (f" --slots {best.slots}" if slots_flag else "")
    lines = [
        f"{bound}: {best.rate:.3g} images/s, {slo.percentile} "
        f"{getattr(best.latency, slo.percentile):.3g} ms, at batch {best.batch}, "
        f"slots {best.slots}"
    ]
    if sweep.build:
        batches = f" --batch 1,{best.batch},{best.batch}" if sweep.plan else ""
        lines.append(f"  {sweep.build}{batches}")
    model = sweep.target or sweep.model
    return [*lines, f"  unetrt predict -m {model} {flags} -i IMAGES --output-dir MASKS"]
