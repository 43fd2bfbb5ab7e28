"""One row of the table, measured in a process of its own: a job on stdin, a result on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract.errors import UserError
from ..contract.types import Size
from ..engine.base import Engine
from ..engine.manifest import read_manifest
from .cuda_clock import torch_rate
from .device_memory import watch_memory
from .engine_row import measure_engine
from .file_passes import FilePasses, clear_outputs, time_passes
from .filled import paths_by_size
from .flops import count_flops
from .job import REFERENCE, VARIANTS, RowJob, RowResult, job_fields
from .machine import cuda_device, peak_host_bytes
from .measure import latency, rate, warm_up
from .nvml import watch_device
from .pass_length import job_with_part
from .process import end_with_parent
from .stock import NOTE, TF32, stock_convolutions

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.checkpoint import Checkpoint
    from .reference import ReferenceLoop

MOST_COMPILED_SHAPES = 3
"""torch.compile takes minutes for each: with more among the images the row is not run."""


def measure_row(job: RowJob) -> RowResult:
    """Open, warm up, measure. Raises UserError when the model cannot run here."""
    with watch_memory(job.device) as memory:
        measure = _measure_reference if job.backend == REFERENCE else _measure_opened
        result = replace(measure(job), model_bytes=model_bytes(Path(job.model)))
    if not result.on_gpu:
        return result
    return replace(result, device_bytes=memory.taken, memory_by=memory.by)


def model_bytes(model: Path) -> int:
    """Of the file that the engine is: of a directory the plan or the graph, nothing beside it."""
    file = model / read_manifest(model).model if model.is_dir() else model
    return file.stat().st_size


def _measure_opened(job: RowJob) -> RowResult:
    start = time.perf_counter()
    with _open(job) as engine:
        choose_graphs(engine, job.graphs)
        opened = time.perf_counter() - start
        return measure_engine(engine, job, opened)


def measure_again(job: RowJob) -> FilePasses:
    """Passes of the reference loop alone. Raises UserError as measure_row."""
    loop = _reference_loop(job)
    with stock_convolutions(loop.device):
        return _reference_passes(loop, job, paths_by_size(job.images))


def _reference_passes(
    loop: ReferenceLoop, job: RowJob, sizes: Mapping[Size, Sequence[Path]]
) -> FilePasses:
    """Leaves masks of the images that it took: of one size those that last long enough, or all."""

    def predict(part: RowJob) -> None:
        loop.predict([Path(p) for p in part.images], [Path(p) for p in part.outputs])

    _infer_each_size(loop, sizes)
    part = job_with_part(job, predict) if len(sizes) == 1 else job
    return time_passes(lambda: predict(part), part)


def _infer_each_size(loop: ReferenceLoop, sizes: Mapping[Size, Sequence[Path]]) -> None:
    """Untimed, as engines are warmed up: the first image of a shape takes longer."""
    for paths in sizes.values():
        loop.infer(*loop.load(paths[0]))


def choose_graphs(engine: Engine, wanted: bool | None) -> None:
    """Before the first slot. Raises UserError for graphs that the engine does not have."""
    if wanted and engine.graphs is None:
        raise UserError(f"the {engine.backend} engine runs no CUDA graphs in this version")
    if wanted is not None and engine.graphs is not None:
        engine.graphs = wanted


def _open(job: RowJob) -> Engine:
    if job.backend in VARIANTS:
        from .torch_rows import VariantEngine

        checkpoint = _checkpoint(job)
        if job.backend == "torch-compile":
            _require_few_shapes(job)
        return VariantEngine(checkpoint, job.backend, job.device)
    from ..engine.open import open_engine

    return open_engine(Path(job.model), job.backend, job.device, job.overrides)


def _checkpoint(job: RowJob) -> Checkpoint:
    from ..training.checkpoint import read_checkpoint

    return read_checkpoint(Path(job.model)).with_overrides(job.overrides)


def _require_few_shapes(job: RowJob) -> None:
    sizes = paths_by_size(job.images)
    if len(sizes) > MOST_COMPILED_SHAPES:
        raise UserError(
            "torch.compile would compile every size of image for minutes",
            seen=f"{len(sizes)} sizes",
            expected=f"at most {MOST_COMPILED_SHAPES}",
        )


def _reference_loop(job: RowJob) -> ReferenceLoop:
    from ..engine.torch_backend import TorchEngine
    from .reference import ReferenceLoop

    checkpoint = _checkpoint(job)
    with TorchEngine(checkpoint, job.device) as engine:  # it chooses and checks the device
        device = engine.device
    return ReferenceLoop(checkpoint, device, job.bit_depth)


def _measure_reference(job: RowJob) -> RowResult:
    """Timed as PyTorch is shipped; on CUDA the masks are then made in strict fp32.

    Elsewhere those of the images that no timed pass took.
    """
    clear_outputs(job)
    start = time.perf_counter()
    loop = _reference_loop(job)
    opened = time.perf_counter() - start
    with stock_convolutions(loop.device) as differs:
        result = _timed_reference(loop, job, opened)
    tasks = [(Path(i), Path(o)) for i, o in zip(job.images, job.outputs, strict=True)]
    left = [task for task in tasks if differs or not task[1].is_file()]
    loop.predict([image for image, _ in left], [output for _, output in left])
    if not differs:
        return result
    return replace(result, label=result.label + NOTE, multiplies=TF32)


def _timed_reference(loop: ReferenceLoop, job: RowJob, opened: float) -> RowResult:
    sizes = paths_by_size(job.images)
    image, size = loop.load(next(iter(sizes.values()))[0])

    def run() -> int:
        loop.infer(image, size)
        return 1

    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    with watch_device(loop.device) as watch:
        warm = warm_up(run, job.seconds)
        alone, rates = _reference_rates(loop, run, image, job)
        files = _reference_passes(loop, job, sizes)
    one_by_one = latency(run, job.seconds)
    input_size = (image.shape[2], image.shape[3])
    return RowResult(
        name=job.name,
        label=f"PyTorch eager fp32, one image at a time, on {loop.device}",
        precision="fp32",
        device=loop.device,
        batch=1,
        slots=1,
        input_size=input_size,
        mask_size=size,
        flops=count_flops(loop.spec, input_size),
        open_seconds=opened,
        first_seconds=first,
        warm_up=warm,
        engine_only=alone,
        with_copies=rates,
        files_to_files=files.rates,
        latency=one_by_one,
        host_bytes=peak_host_bytes(),
        use=watch.use,
        use_reason=watch.reason,
        others=files.others,
        shapes=len(loop.sizes),
        pass_images=files.images,
    )


def _reference_rates(
    loop: ReferenceLoop, run: Callable[[], int], image: Tensor, job: RowJob
) -> tuple[list[float], list[float]]:
    """(engine only, with copies) of every repeat: on CUDA by events, elsewhere by the clock."""
    if not cuda_device(loop.device):
        rates = [rate(run, job.seconds) for _ in range(job.repeats)]
        return rates, rates
    held = image.to(loop.device)

    def network() -> int:
        loop.run_network(held)
        return 1

    torch_rate(network, loop.device, job.seconds)  # warms up
    alone = [torch_rate(network, loop.device, job.seconds) for _ in range(job.repeats)]
    return alone, [torch_rate(run, loop.device, job.seconds) for _ in range(job.repeats)]


def main() -> int:
    """Read a job, print {"result": …}, {"passes": …} or {"error": …} as the last line."""
    end_with_parent()
    job = RowJob(**job_fields(sys.stdin.read()))
    answer: dict[str, object]
    try:
        if job.files_only:
            answer = {"passes": asdict(measure_again(job))}
        else:
            answer = {"result": asdict(measure_row(job))}
    except UserError as error:
        answer = {"error": error.reason}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
