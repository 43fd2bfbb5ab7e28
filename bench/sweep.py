"""Throughput and latency of one engine over batch sizes and slots in flight."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.spec import SpecOverrides
from ..engine.base import Engine, Slot
from ..engine.open import open_engine
from .filled import Batch, commonest_batch
from .measure import Latency, latency_from_seconds
from .process import answer_from_process

BATCHES = (1, 2, 4, 8, 16)
SLOTS = (1, 2, 3, 4)
KNEE = 0.95
"""The knee: the fewest images in flight that reach this share of the best throughput."""


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """seconds: of each point; batches stop growing when one alone takes longer."""

    model: str
    device: str
    images: list[str]
    seconds: float
    scale: float | None = None
    batches: tuple[int, ...] = BATCHES
    slots: tuple[int, ...] = SLOTS


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """Images a second, and the time from a batch's start to its masks with the others beside it."""

    batch: int
    slots: int
    rate: float
    latency: Latency


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """default_slots: what `predict` keeps in flight; build: the command that makes the engine."""

    model: str
    points: tuple[SweepPoint, ...]
    default_slots: int
    build: str = ""
    reason: str = ""

    @property
    def knee(self) -> SweepPoint | None:
        """See KNEE; of two with as many in flight the faster."""
        if not self.points:
            return None
        best = max(point.rate for point in self.points)
        enough = [point for point in self.points if point.rate >= KNEE * best]
        return min(enough, key=lambda point: (point.batch * point.slots, -point.rate))


def sweep_from_dict(raw: dict[str, Any]) -> Sweep:
    points = (SweepPoint(**{**p, "latency": Latency(**p["latency"])}) for p in raw["points"])
    return Sweep(**{**raw, "points": tuple(points)})


def sweep_model(
    name: str,
    model: Path,
    images: Sequence[Path],
    *,
    device: str,
    scale: float | None,
    seconds: float,
    timeout: float,
    build: str = "",
) -> Sweep:
    """Sweep in a fresh process; without points and with the reason when it fails."""
    job = SweepJob(
        model=str(model),
        device=device,
        images=[str(path) for path in images],
        seconds=seconds,
        scale=scale,
    )
    empty = Sweep(model=name, points=(), default_slots=1, build=build)
    answer = answer_from_process("unetrt.bench.sweep", job, timeout)
    if isinstance(answer, str):
        return Sweep(**{**vars(empty), "reason": answer})
    found = sweep_from_dict(answer)
    return Sweep(**{**vars(found), "model": name, "build": build})


def run_sweep(job: SweepJob) -> Sweep:
    """Every batch size with every number of slots. Raises UserError when the model does not run."""
    overrides = SpecOverrides(scale=job.scale)
    points: list[SweepPoint] = []
    with open_engine(Path(job.model), "auto", job.device, overrides) as engine:
        for count in (count for count in job.batches if count >= engine.min_batch):
            batch = commonest_batch(engine.spec, job.images, count)
            points += [_point(engine, batch, slots, job.seconds) for slots in job.slots]
            if count / max(p.rate for p in points if p.batch == count) > job.seconds:
                break
        return Sweep(model=job.model, points=tuple(points), default_slots=engine.slots)


def _point(engine: Engine, batch: Batch, count: int, seconds: float) -> SweepPoint:
    slots = [engine.slot() for _ in range(count)]
    try:
        for slot in slots:
            images = slot.reserve(len(batch.images), batch.input_size)
            for row, image in zip(images, batch.images, strict=True):
                row[:] = image
            _finish(slot, batch)
        times, spent = _keep_in_flight(slots, batch, seconds)
    finally:
        for slot in slots:
            slot.close()
    rate = len(times) * len(batch.images) / spent
    return SweepPoint(
        batch=len(batch.images), slots=count, rate=rate, latency=latency_from_seconds(times)
    )


def _finish(slot: Slot, batch: Batch) -> None:
    """One batch alone: the shape is compiled and the buffers are touched."""
    slot.submit(len(batch.images), batch.size)
    slot.masks()


def _keep_in_flight(
    slots: Sequence[Slot], batch: Batch, seconds: float
) -> tuple[list[float], float]:
    """Seconds of every batch from its start to its masks, and of all together."""
    flying: deque[tuple[Slot, float]] = deque()
    times: list[float] = []
    start = time.perf_counter()
    for slot in slots:
        slot.submit(len(batch.images), batch.size)
        flying.append((slot, time.perf_counter()))
    while flying:
        slot, since = flying.popleft()
        slot.masks()
        now = time.perf_counter()
        times.append(now - since)
        if now - start < seconds:
            slot.submit(len(batch.images), batch.size)
            flying.append((slot, time.perf_counter()))
    return times, time.perf_counter() - start


def main() -> int:
    """Read a job, print the sweep as JSON in the last line."""
    raw = json.loads(sys.stdin.read())
    try:
        found = run_sweep(SweepJob(**raw))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
