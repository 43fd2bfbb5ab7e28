"""The engine alone, measured before, between and after passes over files: on one machine's mood.

A machine that others use is faster in one minute than in the next. What a pass reaches of the
engine is therefore told against the engine right before and right after that pass.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from ..contract.cores import usable_cores
from ..engine.base import Engine
from .cuda_clock import copies_rate, cuda_slots, network_rate
from .filled import Batch, FilledSlots
from .job import RowJob
from .measure import Latency, WarmUp, beside_this_thread, latency, rate, warm_up

UNTIMED = 2
"""Batches of a slot before the first that is timed: the second one captures the CUDA graph."""


class EngineClock:
    """engine_only, with_copies: images a second, one for each `measure`.

    On CUDA streams by their events, drained; elsewhere by the clock, where engine_only is the same
    list, or empty for a device whose copies cannot be left out.
    """

    def __init__(self, engine: Engine, batch: Batch, slots: int, job: RowJob) -> None:
        self._engine, self._batch, self._count = engine, batch, slots
        self._seconds = job.seconds
        self.took = 0.0
        """Seconds of the last `measure`, its slots' making included."""
        self.with_copies: list[float] = []
        self.engine_only: list[float] = self.with_copies if engine.device == "cpu" else []
        self.cores: list[float] = []
        """On a CPU: the share of the cores' time that its threads had, one for each `measure`."""

    def warm_up(self) -> WarmUp:
        with FilledSlots(self._engine, self._batch, self._count) as slots:
            slots.start()
            return warm_up(slots.cycle, self._seconds)

    def measure(self) -> None:
        """Slots of its own, gone afterwards: a pass has the memory for itself."""
        start = time.perf_counter()
        with FilledSlots(self._engine, self._batch, self._count) as slots:
            for _ in range(UNTIMED):
                slots.cycle()
            if cuda_slots(slots):
                self.with_copies.append(copies_rate(slots, self._seconds))
            else:
                self._time(slots)
        if self._engine.device != "cpu":
            alone = network_rate(self._engine, self._batch, self._count, self._seconds)
            self.engine_only += [] if alone is None else [alone]
        self.took = time.perf_counter() - start

    def _time(self, slots: FilledSlots) -> None:
        start, before = time.perf_counter(), beside_this_thread()
        self.with_copies.append(rate(slots.cycle, self._seconds))
        wall, spent = time.perf_counter() - start, beside_this_thread() - before
        if self._engine.device == "cpu":
            self.cores.append(spent / wall / usable_cores())

    def latency(self) -> Latency:
        with FilledSlots(self._engine, self._batch, 1) as slots:
            for _ in range(UNTIMED):
                slots.once()
            return latency(slots.once, self._seconds)

    def shares(self, passes: Sequence[float]) -> list[float]:
        """What each pass, images a second, reaches of the engine measured on both sides of it.

        Of the faster region of each measurement: on CUDA engine_only runs without CUDA graphs.
        Empty unless there is one measurement more than passes.
        """
        needed = len(passes) + 1
        copies = self.with_copies[:needed]
        alone = self.engine_only[:needed] or copies
        if not passes or min(len(copies), len(alone)) < needed:
            return []
        fastest = [max(rates) for rates in zip(copies, alone, strict=True)]
        sides = itertools.pairwise(fastest)
        return [2 * rate / sum(both) for rate, both in zip(passes, sides, strict=True)]
