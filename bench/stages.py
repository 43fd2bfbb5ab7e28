"""Where the time of files-to-files goes: the main thread's step by step, workers' beside it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ..engine.base import Span
from ..runtime.trace import NoTrace

START = "start threads and slots"
ASK = "ask for images"
LOAD = "wait for loaded images"
SORT = "sort images by size"
COPY = "copy into the slots"
SUBMIT = "start batches"
ENGINE = "wait for the engine"
HAND_OVER = "hand masks to the writers"
WRITERS_BUSY = "wait for the writers"
JOURNAL = "count and keep the journal"
REST = "in no step"
STEPS = (START, ASK, LOAD, SORT, COPY, SUBMIT, ENGINE, HAND_OVER, WRITERS_BUSY, JOURNAL, REST)
"""Of the main thread, in their order; REST was not timed: what the others leave of the wall."""
ITS_WORK = (START, ASK, SORT, COPY, SUBMIT, HAND_OVER, JOURNAL, REST)
"""What the main thread does by itself, where it waits for nobody."""
LOOSE = 0.05
"""Share of the wall time in no step, above which the table does not say where the time went."""

_SPANS = {
    ASK: "ask for an image",
    LOAD: "wait for an image",
    SORT: "sort an image",
    COPY: "fill a slot",
    SUBMIT: "start a batch",
    ENGINE: "wait for a batch",
    HAND_OVER: "hand over masks",
    WRITERS_BUSY: "wait for a writer",
    JOURNAL: "journal",
}
"""What the pipeline calls them."""

DECODE, RESIZE, ENCODE, WRITE = "decode", "resize", "encode", "write"
LOADERS, WRITERS = (DECODE, RESIZE), (ENCODE, WRITE)
"""What the load threads and the write threads do."""
WHOLE = ("load", "save")
"""The spans around that: all that they do for an image."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """seconds: of all its threads together; busy: of them × the wall time. cpu: of them, computing.

    The engine's seconds are derived: the images that ran, over its rate with copies. Of images of
    several sizes there is no such rate, and no such stage. Its cpu is measured.
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
    for an engine with a device of its own. Without the engine's rate it is None, and `bound` is
    where the engine is the bottleneck. cores, cores_alone: the share of the cores' time that the
    engine's threads had in the pass, and while it ran alone, measured; None for another device.
    """

    wall: float
    images: int
    stages: tuple[Stage, ...]
    bottleneck: str
    bound: float | None
    shared_bound: float | None = None
    cores: float | None = None
    cores_alone: float | None = None

    @property
    def main_seconds(self) -> float:
        """The sum of the main thread's steps that were timed, to be held against the wall time."""
        main = (stage for stage in self.stages if stage.where == "main thread")
        return sum(stage.seconds for stage in main if stage.name != REST)

    @property
    def in_no_step(self) -> float:
        """Share of the wall time; below 0 where steps overlap."""
        return 1 - self.main_seconds / self.wall

    @property
    def reached(self) -> float | None:
        """The pass's rate as a share of its bound; above 1 the bound is none."""
        bound = self.shared_bound or self.bound
        return None if bound is None else self.images / self.wall / bound


def stage_table_from_dict(raw: dict[str, Any]) -> StageTable:
    return StageTable(**{**raw, "stages": tuple(Stage(**stage) for stage in raw["stages"])})


class StageClock(NoTrace):
    """Sums what the job's own spans take, as `predict --trace` notes them, in any threads.

    seconds: by the clock; cpu: computing. ran: images that the engine ran, padding counted.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.ran = 0
        self.first = float("inf")
        """When the first span began, in time.perf_counter(): all threads and slots are there."""
        self._lock = threading.Lock()

    def span(self, name: str, **arguments: Any) -> AbstractContextManager[None]:
        return _Span(self, name)

    def add(self, name: str, start: float, spent: float, computed: float) -> None:
        """A span that began at `start` and took so many seconds."""
        with self._lock:
            self.first = min(self.first, start)
            self.seconds[name] += spent
            self.cpu[name] += computed

    def note(
        self, name: str, slot: int, start: int, device: Sequence[Span] = (), **arguments: Any
    ) -> None:
        """Of a batch that has landed; from the main thread."""
        self.ran += arguments["of"]


class _Span:
    """A class, not a generator: it takes half as long, and that time is in no step."""

    __slots__ = ("_clock", "_cpu", "_name", "_start")

    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock, self._name = clock, name
        self._start, self._cpu = time.perf_counter(), time.thread_time()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        computed = time.thread_time() - self._cpu
        spent = time.perf_counter() - self._start
        self._clock.add(self._name, self._start, spent, computed)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a timed pass left: its clock, start and end, and how many threads and images it had."""

    clock: StageClock
    start: float
    wall: float
    images: int
    load_threads: int
    write_threads: int
    shared_cores: int | None = None
    """Cores that compute everything; None for an engine with a device of its own."""
    beside_main: float = 0.0
    """Seconds that the process computed, its main thread left out."""

    @property
    def engine_cpu(self) -> float:
        """What is left of that without the threads that load and write."""
        return self.beside_main - sum(self.clock.cpu[name] for name in WHOLE)

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of the main thread in each of STEPS, in their order."""
        found = {START: min(self.wall, self.clock.first - self.start)}
        found |= {step: self.clock.seconds[span] for step, span in _SPANS.items()}
        return {**found, REST: self.wall - sum(found.values())}


def stage_table(
    done: Pass, engine_rate: float | None, cores_alone: float | None = None
) -> StageTable:
    """engine_rate: images a second, with copies, from which its busy share is derived, if known.

    cores_alone: as in StageTable.
    """
    cpu = cores = None
    if done.shared_cores is not None:
        cpu = done.engine_cpu
        cores = cpu / done.wall / done.shared_cores
    stages = [
        Stage(name=step, where="main thread", threads=1, seconds=s, busy=s / done.wall)
        for step, s in done.spent.items()
    ]
    for names, where, threads in (
        (LOADERS, "load threads", done.load_threads),
        (WRITERS, "write threads", done.write_threads),
    ):
        stages += [_worker_stage(done, name, where, threads) for name in names]
    if engine_rate is not None:
        spent = done.clock.ran / engine_rate
        busy = spent / done.wall
        stages.append(
            Stage(name="compute", where="engine", threads=1, seconds=spent, busy=busy, cpu=cpu)
        )
    bottleneck, bound = _bottleneck(done, stages, engine_rate)
    return StageTable(
        wall=done.wall,
        images=done.images,
        stages=tuple(stages),
        bottleneck=bottleneck,
        bound=bound,
        shared_bound=_shared_bound(done, engine_rate),
        cores=cores,
        cores_alone=cores_alone,
    )


def _shared_bound(done: Pass, engine_rate: float | None) -> float | None:
    """Every image takes the engine all cores for a while, and its threads a core for another."""
    if done.shared_cores is None or engine_rate is None:
        return None
    spent, workers = done.spent, sum(done.clock.cpu[name] for name in LOADERS + WRITERS)
    beside = workers + spent[COPY] + spent[SUBMIT]
    return 1 / (1 / engine_rate + beside / done.images / done.shared_cores)


def _worker_stage(done: Pass, name: str, where: str, threads: int) -> Stage:
    seconds = done.clock.seconds[name]
    busy = seconds / threads / done.wall
    cpu = done.clock.cpu[name]
    return Stage(name=name, where=where, threads=threads, seconds=seconds, busy=busy, cpu=cpu)


def _bottleneck(
    done: Pass, stages: list[Stage], engine_rate: float | None
) -> tuple[str, float | None]:
    """What the main thread waits for longest, or its own work; and the rate that it allows."""
    spent = done.spent
    waits = {
        "engine": spent[ENGINE],
        "load threads": spent[LOAD],
        "write threads": spent[WRITERS_BUSY],
        "main thread": sum(spent[step] for step in ITS_WORK),
    }
    name = max(waits, key=lambda key: waits[key])
    if name == "engine":
        return name, engine_rate
    if name == "main thread":
        return name, done.images / waits[name]
    busy = sum(stage.seconds / stage.threads for stage in stages if stage.where == name)
    return name, done.images / busy if busy else engine_rate  # JSON has no infinity
