"""One pass over the files with a clock at every stage."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..contract.errors import UserError
from ..contract.files import write_atomically
from ..contract.images import read_image
from ..contract.resize import resize_image
from ..contract.types import U8, Size
from ..engine.base import Engine
from ..engine.probe import usable_cores
from ..runtime.encode import encode_mask, resolve_format
from ..runtime.pipeline import run_pipeline
from ..runtime.plan import Task
from ..runtime.predict import PredictOptions
from .stages import (
    DECODE,
    ENCODE,
    LOAD,
    RESIZE,
    WRITE,
    Pass,
    StageTable,
    TimedEngine,
    Timeline,
    WorkerClock,
    stage_table,
)


class _Tasks:
    """Tasks in turn; whoever took one goes back to waiting for what is loaded."""

    def __init__(self, tasks: Sequence[Task], timeline: Timeline) -> None:
        self._tasks, self._timeline = iter(tasks), timeline

    def __iter__(self) -> _Tasks:
        return self

    def __next__(self) -> Task:
        self._timeline.enter(LOAD)
        return next(self._tasks)


def time_stages(
    engine: Engine, tasks: Sequence[Task], options: PredictOptions, engine_rate: float
) -> StageTable:
    """One more pass over the files, as `predict_masks` does it, with a clock at every stage."""
    spec = engine.spec
    fmt = resolve_format(options.format, spec)
    clock, start = WorkerClock(), time.perf_counter()
    timeline = Timeline()
    timed = TimedEngine(engine, timeline)

    def load(task: Task) -> tuple[U8, Size]:
        with clock.timed(DECODE):
            image = read_image(task.source, spec.channels, bit_depth=options.bit_depth)
        height, width = image.shape[:2]
        with clock.timed(RESIZE):
            small = resize_image(image, spec.input_size((height, width)), spec.resize)
        return small, (height, width)

    def consume(task: Task, mask: U8) -> None:
        assert task.output is not None
        with clock.timed(ENCODE):
            data = encode_mask(mask, spec, fmt, task.output.suffix)
        with clock.timed(WRITE):
            write_atomically(task.output, data)

    for result in run_pipeline(timed, _Tasks(tasks, timeline), load, consume, options.pipeline):
        if result.error is not None:
            raise UserError("an image failed in the bench", seen=result.reason)
    timeline.enter("")
    done = Pass(
        timeline=timeline,
        clock=clock,
        wall=time.perf_counter() - start,
        images=len(tasks),
        ran=timed.ran,
        load_threads=options.pipeline.load_threads or usable_cores(),
        write_threads=options.pipeline.write_threads,
        shared_cores=usable_cores() if engine.device == "cpu" else None,
    )
    return stage_table(done, engine_rate)
