"""An engine measured: engine only, one batch at a time, files to files, and its stages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from ..contract.resize import network_input
from ..engine.base import Engine
from ..runtime.digest import digest_from_model
from ..runtime.journal import JournalOptions
from ..runtime.pipeline import PipelineOptions
from ..runtime.plan import Task
from ..runtime.predict import PredictOptions, predict_masks
from .engine_clock import EngineClock
from .file_passes import clear_outputs, output_folder, time_passes
from .filled import Batch, FilledSlots, commonest_batch
from .flops import count_flops
from .job import RowJob, RowResult
from .machine import peak_host_bytes
from .nvml import watch_device
from .profilers import profile_layers
from .stages import stage_table
from .timed_pass import require_all_done, timed_pass


def measure_engine(engine: Engine, job: RowJob, opened: float) -> RowResult:
    """All of a row; `opened`: seconds that it took to open. Raises UserError when an image fails.

    Warms up first, every shape among the images.
    """
    batch = commonest_batch(
        engine.spec, job.images, job.batch or engine.batch, bit_depth=job.bit_depth
    )
    slots = job.slots or engine.slots
    first = _first_seconds(engine, batch)
    tasks, options = _tasks(job), _options(job)
    sizes = _task_of_each_size(engine, tasks, job)
    clock = EngineClock(engine, batch, slots, job)
    with watch_device(engine.device) as watch:
        clear_outputs(job)
        _predict(engine, _warm_up_tasks(engine, tasks, sizes), options)
        warm = clock.warm_up()
        files = time_passes(lambda: _predict(engine, tasks, options), job, clock.measure)
        while len(clock.with_copies) < job.repeats:
            clock.measure()
    clear_outputs(job)
    timed = timed_pass(engine, tasks, options)
    clock.measure()
    stages = stage_table(timed, statistics.mean(clock.with_copies[-2:]))
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
        of_engine=clock.shares(files.rates),
        latency=clock.latency(),
        stages=stages,
        host_bytes=peak_host_bytes(),
        layers=profile_layers(engine, batch, job.seconds) if job.layers else None,
        use=watch.use,
        use_reason=watch.reason,
        others=files.others,
        graphs=bool(engine.graphs),
        shapes=len(sizes),
    )


def write_masks(engine: Engine, job: RowJob) -> None:
    """Make the masks of a row once more, untimed."""
    clear_outputs(job)
    _predict(engine, _tasks(job), _options(job))


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


def _task_of_each_size(engine: Engine, tasks: Sequence[Task], job: RowJob) -> list[Task]:
    depth = job.bit_depth
    sizes = {network_input(t.source, engine.spec, bit_depth=depth)[1]: t for t in tasks}
    return list(sizes.values())


def _warm_up_tasks(engine: Engine, tasks: Sequence[Task], sizes: Sequence[Task]) -> list[Task]:
    """A task for each size among the images, and enough for every slot to have run."""
    return list(dict.fromkeys([*sizes, *tasks[: 2 * engine.slots]]))


def _first_seconds(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter()
    with FilledSlots(engine, batch, 1) as slots:
        slots.once()
        return time.perf_counter() - start
