"""Where the time of files-to-files goes: the main thread's without a gap, workers' beside it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..contract.types import U8, Size
from ..engine.base import Engine, Slot

START = "start threads and slots"
LOAD = "wait for loaded images"
COPY = "copy into the slots"
SUBMIT = "start batches"
ENGINE = "wait for the engine"
HAND_OVER = "hand masks over, wait for the writers"
STEPS = (START, LOAD, COPY, SUBMIT, ENGINE, HAND_OVER)
"""Of the main thread, in their order; together they are the wall time."""

DECODE, RESIZE, ENCODE, WRITE = "decode", "resize", "encode", "write"
LOADERS, WRITERS = (DECODE, RESIZE), (ENCODE, WRITE)
"""What the load threads and the write threads do."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """seconds: of all its threads together; busy: of them × the wall time. cpu: of them, computing.

    The engine's seconds are derived: the images that ran, over the engine-only rate.
    """

    name: str
    where: str
    threads: int
    seconds: float
    busy: float
    cpu: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """One pass over the files, timed. bound: images a second if `bottleneck` were all there is.

    shared_bound: when engine and workers compute on the same cores, without a moment's wait; None
    for an engine with a device of its own.
    """

    wall: float
    images: int
    stages: tuple[Stage, ...]
    bottleneck: str
    bound: float
    shared_bound: float | None = None

    @property
    def main_seconds(self) -> float:
        """The sum of the main thread's steps, to be held against the wall time."""
        return sum(stage.seconds for stage in self.stages if stage.where == "main thread")


def stage_table_from_dict(raw: dict[str, Any]) -> StageTable:
    return StageTable(**{**raw, "stages": tuple(Stage(**stage) for stage in raw["stages"])})


class Timeline:
    """The main thread's time cut into steps: to enter one is to leave the last."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._step, self._since = START, time.perf_counter()

    def enter(self, step: str) -> None:
        now = time.perf_counter()
        self.spent[self._step] += now - self._since
        self._step, self._since = step, now


class WorkerClock:
    """Seconds that threads spend in each stage: by the clock, and computing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start, cpu = time.perf_counter(), time.thread_time()
        yield
        spent, computed = time.perf_counter() - start, time.thread_time() - cpu
        with self._lock:
            self.seconds[stage] += spent
            self.cpu[stage] += computed


class TimedEngine(Engine):
    """An engine whose slots tell a timeline when they are filled, started and waited for."""

    def __init__(self, engine: Engine, timeline: Timeline) -> None:
        super().__init__(engine.spec)
        self.backend, self.precision, self.device = engine.backend, engine.precision, engine.device
        self.slots, self.batch, self.min_batch = engine.slots, engine.batch, engine.min_batch
        self.inner, self.timeline = engine, timeline
        self.ran = 0
        """Images that the engine ran, padding counted."""

    def slot(self) -> Slot:
        return TimedSlot(self.inner.slot(), self)


class TimedSlot(Slot):
    """A slot, its calls noted in the engine's timeline; all come from the main thread."""

    def __init__(self, inner: Slot, engine: TimedEngine) -> None:
        self._inner, self._engine = inner, engine

    def reserve(self, batch: int, size: Size) -> U8:
        self._engine.timeline.enter(COPY)
        return self._inner.reserve(batch, size)

    @property
    def images(self) -> U8:
        return self._inner.images

    def submit(self, n: int, size: Size) -> None:
        self._engine.timeline.enter(SUBMIT)
        self._inner.submit(n, size)
        self._engine.ran += len(self._inner.images)
        self._engine.timeline.enter(LOAD)

    def masks(self) -> U8:
        self._engine.timeline.enter(ENGINE)
        masks = self._inner.masks()
        self._engine.timeline.enter(HAND_OVER)
        return masks

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a timed pass left: its clocks, and how many threads and images it had."""

    timeline: Timeline
    clock: WorkerClock
    wall: float
    images: int
    ran: int
    load_threads: int
    write_threads: int
    shared_cores: int | None = None
    """Cores that compute everything; None for an engine with a device of its own."""


def stage_table(done: Pass, engine_rate: float) -> StageTable:
    """engine_rate: images a second, engine-only, from which its busy share is derived."""
    stages = [
        Stage(name=step, where="main thread", threads=1, seconds=s, busy=s / done.wall)
        for step, s in ((step, done.timeline.spent[step]) for step in STEPS)
    ]
    for names, where, threads in (
        (LOADERS, "load threads", done.load_threads),
        (WRITERS, "write threads", done.write_threads),
    ):
        stages += [_worker_stage(done, name, where, threads) for name in names]
    computing = done.ran / engine_rate
    busy = computing / done.wall
    stages.append(Stage(name="compute", where="engine", threads=1, seconds=computing, busy=busy))
    bottleneck, bound = _bottleneck(done, stages, engine_rate)
    return StageTable(
        wall=done.wall,
        images=done.images,
        stages=tuple(stages),
        bottleneck=bottleneck,
        bound=bound,
        shared_bound=_shared_bound(done, engine_rate),
    )


def _shared_bound(done: Pass, engine_rate: float) -> float | None:
    """Every image takes the engine all cores for a while, and its threads a core for another."""
    if done.shared_cores is None:
        return None
    beside = sum(done.clock.cpu.values()) + done.timeline.spent[COPY] + done.timeline.spent[SUBMIT]
    return 1 / (1 / engine_rate + beside / done.images / done.shared_cores)


def _worker_stage(done: Pass, name: str, where: str, threads: int) -> Stage:
    seconds = done.clock.seconds[name]
    busy = seconds / threads / done.wall
    cpu = done.clock.cpu[name]
    return Stage(name=name, where=where, threads=threads, seconds=seconds, busy=busy, cpu=cpu)


def _bottleneck(done: Pass, stages: list[Stage], engine_rate: float) -> tuple[str, float]:
    """What the main thread waits for longest, or its own work; and the rate that it allows."""
    spent = done.timeline.spent
    waits = {
        "engine": spent[ENGINE],
        "load threads": spent[LOAD],
        "write threads": spent[HAND_OVER],
        "main thread": spent[START] + spent[COPY] + spent[SUBMIT],
    }
    name = max(waits, key=lambda key: waits[key])
    if name == "engine":
        return name, engine_rate
    if name == "main thread":
        return name, done.images / waits[name]
    busy = sum(stage.seconds / stage.threads for stage in stages if stage.where == name)
    return name, done.images / busy if busy else float("inf")
