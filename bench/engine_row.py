"""An engine measured: engine only, one batch at a time, files to files, and its stages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..contract.errors import UserError
from ..contract.resize import network_input
from ..engine.base import Engine
from ..runtime.pipeline import PipelineOptions
from ..runtime.plan import Task
from ..runtime.predict import PredictOptions, predict_masks
from .filled import Batch, FilledSlots, commonest_batch
from .flops import count_flops
from .job import RowJob, RowResult
from .machine import device_bytes_in_use, peak_host_bytes
from .measure import latency, rate, warm_up
from .timed_pass import time_stages


def measure_engine(engine: Engine, job: RowJob, opened: float) -> RowResult:
    """All of a row; `opened`: seconds that it took to open. Raises UserError when an image fails.

    Warms up first, every shape among the images.
    """
    used = device_bytes_in_use(engine.device)
    batch = commonest_batch(engine.spec, job.images, job.batch or engine.batch)
    first = _first_seconds(engine, batch)
    tasks = [Task(Path(i), Path(o)) for i, o in zip(job.images, job.outputs, strict=True)]
    options = PredictOptions(pipeline=PipelineOptions(batch=job.batch))
    _predict(engine, _one_of_each_shape(engine, tasks), options)
    with FilledSlots(engine, batch, engine.slots) as slots:
        warm = warm_up(slots.turn, job.seconds)
        rates = [rate(slots.turn, job.seconds) for _ in range(job.repeats)]
        now = device_bytes_in_use(engine.device)
    with FilledSlots(engine, batch, 1) as slots:
        one = latency(slots.once, job.seconds)
    files = file_rates(lambda: _predict(engine, tasks, options), job)
    on_cpu = engine.device == "cpu"
    return RowResult(
        name=job.name,
        label=engine.label,
        precision=engine.precision,
        device=engine.device,
        batch=len(batch.images),
        slots=engine.slots,
        input_size=batch.input_size,
        mask_size=batch.size,
        flops=count_flops(engine.spec, batch.input_size),
        open_seconds=opened,
        first_seconds=first,
        warm_up=warm,
        engine_only=rates if on_cpu else [],
        with_copies=rates,
        files_to_files=files,
        latency=one,
        stages=time_stages(engine, tasks, options, statistics.median(rates)),
        host_bytes=peak_host_bytes(),
        device_bytes=None if now is None or used is None else max(0, now - used),
    )


def _predict(engine: Engine, tasks: Sequence[Task], options: PredictOptions) -> None:
    summary = predict_masks(engine, tasks, options)
    if summary.failed:
        raise UserError("images failed in the bench", seen=summary.failures[:3])


def _one_of_each_shape(engine: Engine, tasks: Sequence[Task]) -> list[Task]:
    """A task for each size among the images, and enough for every slot to have run."""
    sizes = {network_input(task.source, engine.spec)[1]: task for task in tasks}
    return list(dict.fromkeys([*sizes.values(), *tasks[: 2 * engine.slots]]))


def _first_seconds(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter()
    with FilledSlots(engine, batch, 1) as slots:
        slots.once()
        return time.perf_counter() - start


def file_rates(predict: Callable[[], None], job: RowJob) -> list[float]:
    """At least one pass over all files; more while `repeats` and the time allow."""
    rates: list[float] = []
    spent = 0.0
    while not rates or (len(rates) < job.repeats and spent < job.seconds * job.repeats):
        start = time.perf_counter()
        predict()
        elapsed = time.perf_counter() - start
        spent += elapsed
        rates.append(len(job.images) / elapsed)
    return rates
