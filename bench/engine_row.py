"""An engine measured: engine only, one batch at a time, files to files, and its stages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..contract.types import Size
from ..engine.base import Engine
from ..runtime.digest import digest_from_model
from ..runtime.journal import JournalOptions
from ..runtime.pipeline import PipelineOptions
from ..runtime.plan import Task
from ..runtime.predict import PredictOptions, predict_masks
from .engine_clock import EngineClock
from .file_passes import (
    AFTER,
    LEFT,
    FilePasses,
    clear_outputs,
    has_time,
    output_folder,
    time_passes,
)
from .filled import Batch, FilledSlots, commonest_batch, paths_by_size
from .flops import count_flops
from .job import RowJob, RowResult
from .machine import peak_host_bytes
from .nvml import watch_device
from .pass_length import job_with_rounds, put_rounds_aside
from .profilers import profile_layers
from .stages import StageTable, stage_table
from .timed_pass import require_all_done, timed_pass


def measure_engine(engine: Engine, job: RowJob, opened: float) -> RowResult:
    """All of a row; `opened`: seconds that it took to open. Raises UserError when an image fails.

    Warms up first, every shape among the images.
    """
    sizes = paths_by_size(job.images)
    count = job.batch or engine.batch_for(engine.spec.input_size(next(iter(sizes))))
    batch = commonest_batch(engine.spec, sizes, count, job.bit_depth)
    slots = job.slots or engine.slots
    first = _first_seconds(engine, batch)
    clock = EngineClock(engine, batch, slots, job)
    options = _options(job)
    try:
        with watch_device(engine.device) as watch:
            clear_outputs(job)
            _predict(engine, _warm_up_tasks(engine, job, sizes), options)
            warm = clock.warm_up()
            longer = job_with_rounds(
                job, warm.rate, lambda one: _predict(engine, _tasks(one), options)
            )
            files = _timed_passes(engine, longer, clock)
        stages = _timed_stages(engine, longer, clock, len(sizes))
    finally:
        put_rounds_aside(output_folder(job))
    latency = clock.latency()
    held = peak_host_bytes()  # before a profiler takes its own
    layers = profile_layers(engine, batch, job.seconds) if job.layers else None
    return RowResult(
        name=job.name,
        label=engine.label,
        precision=engine.precision,
        device=engine.device,
        batch=len(batch.images),
        slots=slots,
        input_size=batch.input_size,
        mask_size=batch.size,
        flops=count_flops(engine.spec, batch.input_size),
        open_seconds=opened,
        first_seconds=first,
        warm_up=warm,
        engine_only=clock.engine_only,
        with_copies=clock.with_copies,
        files_to_files=files.rates,
        of_engine=clock.shares(files.rates) if len(sizes) == 1 else [],
        latency=latency,
        stages=stages,
        host_bytes=held,
        layers=layers,
        use=watch.use,
        use_reason=watch.reason,
        others=files.others,
        graphs=bool(engine.graphs),
        shapes=len(sizes),
        pass_images=files.images,
    )


def _timed_passes(engine: Engine, job: RowJob, clock: EngineClock) -> FilePasses:
    """Files to files, the engine on both sides of each pass, and on up to `repeats` times.

    Fewer where the time would be missing for the stages' pass and what follows it.
    """
    tasks, options = _tasks(job), _options(job)
    files = time_passes(lambda: _predict(engine, tasks, options), job, clock.measure)
    one_pass = len(job.images) / files.rates[-1]
    while len(clock.with_copies) < job.repeats and has_time(
        job, (LEFT - 1) * one_pass + (2 + AFTER) * clock.took
    ):
        clock.measure()
    return files


def _timed_stages(engine: Engine, job: RowJob, clock: EngineClock, shapes: int) -> StageTable:
    """Of one more pass, the engine's own time by its rate with copies on both sides of it.

    That rate is of the commonest size: of several it says nothing of the time of all.
    """
    clear_outputs(job)
    timed = timed_pass(engine, _tasks(job), _options(job))
    clock.measure()
    rate = statistics.mean(clock.with_copies[-2:]) if shapes == 1 else None
    cores = statistics.mean(clock.cores[-2:]) if clock.cores else None
    return stage_table(timed, rate, cores)


def _tasks(job: RowJob) -> list[Task]:
    return [Task(Path(i), Path(o)) for i, o in zip(job.images, job.outputs, strict=True)]


def _options(job: RowJob) -> PredictOptions:
    """With a journal, as `predict --output-dir` keeps one: what is measured is what users get."""
    pipeline = PipelineOptions(batch=job.batch, slots=job.slots)
    model = digest_from_model(Path(job.model))
    journal = JournalOptions(output_dir=output_folder(job), model=model)
    return PredictOptions(pipeline=pipeline, bit_depth=job.bit_depth, journal=journal)


def _predict(engine: Engine, tasks: Sequence[Task], options: PredictOptions) -> None:
    require_all_done(predict_masks(engine, tasks, options))


def _warm_up_tasks(engine: Engine, job: RowJob, sizes: Mapping[Size, Sequence[Path]]) -> list[Task]:
    """A task for each size among the images, and enough for every slot to have run."""
    tasks = _tasks(job)
    first = {paths[0] for paths in sizes.values()}
    chosen = [task for task in tasks if task.source in first]
    return list(dict.fromkeys([*chosen, *tasks[: 2 * engine.slots * engine.most_batch]]))


def _first_seconds(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter()
    with FilledSlots(engine, batch, 1) as slots:
        slots.once()
        return time.perf_counter() - start
