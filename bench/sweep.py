"""Throughput and latency of one engine over batches, slots in flight and sizes of images."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.images import MAX_PIXELS
from ..contract.resize import resize_image
from ..contract.spec import NO_OVERRIDES, SpecOverrides
from ..contract.types import Size
from ..engine.base import Engine, Slot, memory_errors
from ..engine.open import open_engine
from .engine_clock import UNTIMED
from .filled import Batch, FilledSlots, commonest_batch, paths_by_size
from .job import job_fields
from .measure import Latency, latency_from_seconds
from .process import answer_from_process, end_with_parent

BATCHES = (1, 2, 4, 8, 16)
SLOTS = (1, 2, 3, 4)
PATIENCE = 5
"""Times the seconds of a point that it may take to run the fewest batches asked for."""
KNEE = 0.95
"""The knee: the fewest images in flight that reach this share of the best throughput."""


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """seconds: of each point; batches stop growing when one alone takes longer.

    sizes: of images, beside that of most; none takes half and twice its sides. fewest: batches of
    a point, for which it may take up to PATIENCE times its seconds.
    """

    model: str
    device: str
    images: list[str]
    seconds: float
    overrides: SpecOverrides = NO_OVERRIDES
    batches: tuple[int, ...] = BATCHES
    slots: tuple[int, ...] = SLOTS
    sizes: tuple[Size, ...] = ()
    fewest: int = 0
    bit_depth: int | None = None


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """Images of a size (H, W) a second, and the time from a batch's start to its masks.

    The other slots' batches run beside it.
    """

    size: Size
    batch: int
    slots: int
    rate: float
    latency: Latency


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """size: of most images, whose points come first.

    build: the command that makes the engine, '' for one that is there; target: what `predict` is
    then given, with `flags` and `images`. plan: it takes the batches that it was built for.
    refused: what the engine does not run, a size or a batch of it, and why.
    """

    model: str
    points: tuple[SweepPoint, ...]
    size: Size = (0, 0)
    build: str = ""
    target: str = ""
    flags: str = ""
    images: str = ""
    plan: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def sizes(self) -> list[Size]:
        return list(dict.fromkeys(point.size for point in self.points))

    def knee(self, size: Size) -> SweepPoint | None:
        """See KNEE; of two with as many in flight the faster."""
        points = [point for point in self.points if point.size == size]
        best = max((point.rate for point in points), default=0.0)
        enough = [point for point in points if point.rate >= KNEE * best]
        return min(enough, key=lambda p: (p.batch * p.slots, -p.rate), default=None)


def sweep_from_dict(raw: dict[str, Any]) -> Sweep:
    """The inverse of `dataclasses.asdict` after JSON."""
    points = tuple(
        SweepPoint(**{**p, "size": tuple(p["size"]), "latency": Latency(**p["latency"])})
        for p in raw["points"]
    )
    return Sweep(**{**raw, "points": points, "size": tuple(raw["size"])})


def sweep_model(name: str, job: SweepJob, timeout: float) -> Sweep:
    """Sweep in a fresh process; without points and with the reason when it fails."""
    answer = answer_from_process("unetrt.bench.sweep", job, timeout)
    if isinstance(answer, str):
        return Sweep(model=name, points=(), reason=answer)
    return replace(sweep_from_dict(answer), model=name)


def run_sweep(job: SweepJob) -> Sweep:
    """Every batch size with every number of slots; other sizes with the engine's own slots.

    Raises UserError when the model does not run.
    """
    with open_engine(Path(job.model), "auto", job.device, job.overrides) as engine:
        sizes = paths_by_size(job.images)
        own = next(iter(sizes))
        work = _Work(engine, sizes, job)
        points = _points_of_size(work, own, job.slots)
        if not points:
            raise UserError(next(iter(work.refused.values()), "no batch was swept"))
        for size in _other_sizes(own, job.sizes):
            points += _points_of_size(work, size, (engine.slots,))
        return Sweep(
            model=job.model,
            points=tuple(points),
            size=own,
            plan=engine.backend.startswith("tensorrt"),
            refused=work.refused,
        )


@dataclass(frozen=True)
class _Work:
    """What all points share; sizes: see paths_by_size. refused: as Sweep's, filled on the way."""

    engine: Engine
    sizes: Mapping[Size, Sequence[Path]]
    job: SweepJob
    refused: dict[str, str] = field(default_factory=dict)


def _other_sizes(own: Size, sizes: Sequence[Size]) -> list[Size]:
    height, width = own
    halved = (max(1, height // 2), max(1, width // 2))
    chosen = [(s[0], s[1]) for s in sizes] or [halved, (2 * height, 2 * width)]
    return [size for size in dict.fromkeys(chosen) if size != own]


def _points_of_size(work: _Work, size: Size, slots: Sequence[int]) -> list[SweepPoint]:
    """Batches that grow until one is refused, as by a plan's profiles or for want of memory.

    A number of slots that a batch is refused in is not tried with larger ones.
    """
    points: list[SweepPoint] = []
    for count in (count for count in work.job.batches if count >= work.engine.min_batch):
        found, reason = _points_of_batch(work, size, count, slots)
        points += found
        if reason:
            what = [f"{size[0]}×{size[1]}", *[f"batch {count}"] * bool(points)]
            what += [f"{slots[len(found)]} slots"] * bool(found)
            work.refused[", ".join(what)] = reason
        if not found:
            break
        slots = slots[: len(found)]
        if count / max(point.rate for point in found) > work.job.seconds:
            break
    return points


def _points_of_batch(
    work: _Work, size: Size, count: int, slots: Sequence[int]
) -> tuple[list[SweepPoint], str]:
    """One number of slots after another; why the one after them is refused, or ''."""
    points: list[SweepPoint] = []
    batch: Batch | None = None
    for n in slots:
        try:
            with memory_errors(f"a batch of {count}, {n} slots"):
                batch = batch or _batch_of_size(work, size, count)
                points.append(_point(work.engine, batch, n, work.job))
        except UserError as error:
            return points, error.reason
    return points, ""


def _batch_of_size(work: _Work, size: Size, count: int) -> Batch:
    """Images of the commonest size, resized where another is asked for.

    Raises UserError for too many pixels.
    """
    spec = work.engine.spec
    batch = commonest_batch(spec, work.sizes, count, work.job.bit_depth)
    if batch.size == size:
        return batch
    wanted = spec.input_size(size)
    if max(math.prod(size), math.prod(wanted)) > MAX_PIXELS:
        raise UserError(f"more than {MAX_PIXELS} pixels", seen=f"{wanted[0]}×{wanted[1]}")
    return Batch([resize_image(i, wanted, spec.resize) for i in batch.images], size)


def _point(engine: Engine, batch: Batch, count: int, job: SweepJob) -> SweepPoint:
    with FilledSlots(engine, batch, count) as filled:
        for slot in filled.slots:
            _finish(slot, batch)
        times, spent = _keep_in_flight(filled.slots, batch, job, engine.streams)
    rate = len(times) * len(batch.images) / spent
    return SweepPoint(
        size=batch.size,
        batch=len(batch.images),
        slots=count,
        rate=rate,
        latency=latency_from_seconds(times),
    )


def _finish(slot: Slot, batch: Batch) -> None:
    """Batches alone: the shape is compiled, the buffers are touched, the CUDA graph captured."""
    for _ in range(UNTIMED):
        slot.submit(len(batch.images), batch.size)
        slot.masks()


def _keep_in_flight(
    slots: Sequence[Slot], batch: Batch, job: SweepJob, streams: int
) -> tuple[list[float], float]:
    """Seconds of every batch from its start to its masks, and of all together.

    streams: batches that the engine computes at once. Whole rounds of them: of three batches on two
    streams, the last would be timed with one stream idle.
    """
    together = min(len(slots), streams)
    flying: deque[tuple[Slot, float]] = deque()
    times: list[float] = []

    def submit(slot: Slot) -> None:
        flying.append((slot, time.perf_counter()))
        slot.submit(len(batch.images), batch.size)

    start = time.perf_counter()
    for slot in slots:
        submit(slot)
    while flying:
        slot, since = flying.popleft()
        slot.masks()
        now = time.perf_counter()
        times.append(now - since)
        started = len(times) + len(flying)
        more = now - start < job.seconds * (PATIENCE if started < job.fewest else 1)
        if more or started % together:
            submit(slot)
    return times, time.perf_counter() - start


def main() -> int:
    """Read a job, print the sweep as JSON in the last line."""
    end_with_parent()
    job = SweepJob(**job_fields(sys.stdin.read()))
    try:
        found = run_sweep(job)
    except UserError as error:
        found = Sweep(model=job.model, points=(), reason=error.reason)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
