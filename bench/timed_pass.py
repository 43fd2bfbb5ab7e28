"""One pass over the files with a clock at every stage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ..contract.cores import usable_cores
from ..contract.errors import UserError
from ..engine.base import Engine
from ..runtime.plan import Task
from ..runtime.predict import PredictOptions, Summary, predict_masks
from .measure import beside_this_thread
from .stages import Pass, StageClock


def timed_pass(engine: Engine, tasks: Sequence[Task], options: PredictOptions) -> Pass:
    """One more pass of `predict_masks` over the files, its spans summed. UserError: one failed."""
    clock = StageClock()
    pipeline = replace(options.pipeline, trace=clock)
    start, before = time.perf_counter(), beside_this_thread()
    summary = predict_masks(engine, tasks, replace(options, pipeline=pipeline))
    wall, beside_main = time.perf_counter() - start, beside_this_thread() - before
    require_all_done(summary)
    return Pass(
        clock=clock,
        start=start,
        wall=wall,
        images=len(tasks),
        load_threads=options.pipeline.load_threads or usable_cores(),
        write_threads=options.pipeline.write_threads,
        shared_cores=usable_cores() if engine.device == "cpu" else None,
        beside_main=beside_main,
    )


def require_all_done(summary: Summary) -> None:
    """Raise UserError unless the pass has made every mask: what was skipped took no time."""
    if summary.failed:
        raise UserError("images failed in the bench", seen=summary.failures[:3])
    if summary.skipped:
        raise UserError("images were skipped in the bench", seen=f"{summary.skipped} images")
