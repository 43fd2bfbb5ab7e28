"""The engine alone, measured before, between and after passes over files: on one machine's mood.

A machine that others use is faster in one minute than in the next. What a pass reaches of the
engine is therefore told against the engine right before and right after that pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..engine.base import Engine
from .cuda_clock import copies_rate, cuda_slots, network_rate
from .filled import Batch, FilledSlots
from .job import RowJob
from .measure import Latency, WarmUp, latency, rate, warm_up


class EngineClock:
    """engine_only, with_copies: images a second, one for each `measure`.

    On CUDA streams by their events, drained; elsewhere by the clock, where engine_only is the same
    list, or empty for a device whose copies cannot be left out.
    """

    def __init__(self, engine: Engine, batch: Batch, slots: int, job: RowJob) -> None:
        self._engine, self._batch, self._count = engine, batch, slots
        self._seconds = job.seconds
        self.with_copies: list[float] = []
        self.engine_only: list[float] = self.with_copies if engine.device == "cpu" else []

    def warm_up(self) -> WarmUp:
        with FilledSlots(self._engine, self._batch, self._count) as slots:
            return warm_up(slots.cycle, self._seconds)

    def measure(self) -> None:
        """Slots of its own, gone afterwards: a pass has the memory for itself."""
        with FilledSlots(self._engine, self._batch, self._count) as slots:
            slots.cycle()  # all in flight, the buffers touched
            slots.cycle()
            if cuda_slots(slots):
                self.with_copies.append(copies_rate(slots, self._seconds))
            else:
                self.with_copies.append(rate(slots.cycle, self._seconds))
        if self._engine.device != "cpu":
            alone = network_rate(self._engine, self._batch, self._count, self._seconds)
            self.engine_only += [] if alone is None else [alone]

    def latency(self) -> Latency:
        with FilledSlots(self._engine, self._batch, 1) as slots:
            slots.once()
            return latency(slots.once, self._seconds)

    def shares(self, passes: Sequence[float]) -> list[float]:
        """What each pass, images a second, reaches of the engine measured on both sides of it.

        Of engine_only, with_copies where that is empty; one measurement more than passes.
        """
        rates = self.engine_only or self.with_copies
        sides = itertools.pairwise(rates)
        return [2 * rate / sum(both) for rate, both in zip(passes, sides, strict=False)]
