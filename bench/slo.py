"""The highest throughput under a bound on the latency, and the commands that give it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ..contract.errors import UserError
from .measure import Latency
from .sweep import Sweep, SweepPoint
from .text import number

FEWEST = {"p50": 10, "p95": 20, "p99": 100}
"""Batches without which a percentile is little else than the slowest: then that one counts."""


@dataclass(frozen=True)
class Slo:
    """A bound on a percentile of the latency, in milliseconds."""

    percentile: str
    milliseconds: float

    @property
    def text(self) -> str:
        return f"{self.percentile} ≤ {self.milliseconds:g} ms"

    def believed(self, latency: Latency) -> bool:
        return latency.count >= FEWEST[self.percentile]

    def value_of(self, latency: Latency) -> float:
        """The percentile, or of too few batches the slowest."""
        value = float(getattr(latency, self.percentile))
        return value if self.believed(latency) else max(value, latency.slowest)

    def met_by(self, point: SweepPoint) -> bool:
        return self.value_of(point.latency) <= self.milliseconds

    def told(self, latency: Latency) -> str:
        value = f"{number(self.value_of(latency))} ms"
        if self.believed(latency):
            return f"{self.percentile} {value} over {latency.count} batches"
        few = f"of fewer than {FEWEST[self.percentile]} a {self.percentile} is not believed"
        return f"{value}, the slowest of {latency.count} batches ({few})"


@dataclass(frozen=True, kw_only=True)
class SloAnswer:
    """The answer to --slo as lines; met: a setting was found."""

    bound: str
    met: bool
    lines: tuple[str, ...]


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


def best_under(sweep: Sweep, slo: Slo) -> SweepPoint | None:
    """The fastest point of the commonest size under the bound."""
    own = [point for point in sweep.points if point.size == sweep.size]
    return max(filter(slo.met_by, own), key=lambda p: p.rate, default=None)


def answer_slo(sweep: Sweep | None, slo: Slo, interrupted: bool = False) -> SloAnswer:
    """The throughput and the commands that give it, or what is nearest."""
    if sweep is None:
        why = "no engine with trusted masks to sweep"
        return _unmet(slo, "the bench was interrupted before it had swept" if interrupted else why)
    best = best_under(sweep, slo)
    if best is None:
        return _unmet(slo, _nearest(sweep, slo))
    found = f"{number(best.rate)} images/s, {slo.told(best.latency)}"
    line = f"{slo.text}: {found}, at batch {best.batch}, slots {best.slots}"
    return SloAnswer(bound=slo.text, met=True, lines=(line, *_commands(sweep, best)))


def _unmet(slo: Slo, why: str) -> SloAnswer:
    return SloAnswer(bound=slo.text, met=False, lines=(f"{slo.text}: {why}",))


def _nearest(sweep: Sweep, slo: Slo) -> str:
    own = [point for point in sweep.points if point.size == sweep.size]
    nearest = min(own, key=lambda p: slo.value_of(p.latency), default=None)
    if nearest is None:
        return f"nothing was swept ({sweep.reason or 'no points'})"
    return (
        f"no setting meets it; the lowest is {slo.told(nearest.latency)}, at "
        f"batch {nearest.batch}, slots {nearest.slots}"
    )


def _commands(sweep: Sweep, best: SweepPoint) -> list[str]:
    """What builds the engine, where it is not there already, and what then runs it."""
    lines = []
    if sweep.build:
        batches = f" --batch 1,{best.batch},{best.batch}" if sweep.plan else ""
        lines.append(f"  {sweep.build}{batches}")
    model, images = shlex.quote(sweep.target or sweep.model), shlex.quote(sweep.images or "IMAGES")
    flags = f"--batch {best.batch} --slots {best.slots}"
    flags += f" {sweep.flags}" if sweep.flags else ""
    return [*lines, f"  unetrt predict -m {model} {flags} -i {images} --output-dir MASKS"]
