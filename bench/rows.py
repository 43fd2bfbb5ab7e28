"""What the bench measures: the models that are named, or all that a checkpoint can become."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..contract.errors import UserError
from ..contract.spec import SpecOverrides
from ..contract.types import Size
from ..engine.manifest import MANIFEST, read_manifest
from ..engine.probe import BackendStatus, probe_backends
from ..export.build import PRECISIONS, BuildOptions, build_engine
from ..export.gate import GateOptions
from ..export.tensorrt_build import PlanOptions
from .job import REFERENCE, VARIANTS

CPU_ENGINES = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
GPU_ENGINES = (
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
    ("tensorrt-rtx", "fp32"),
    ("tensorrt-rtx", "fp16"),
)
"""Built from a checkpoint that is given alone; in the order of the waterfall."""

GPU_STEPS = (
    ("", 1, 1, False),
    (" + batch", None, 1, False),
    (" + CUDA graph", None, 1, True),
    (" + slots in flight", None, None, None),
)
"""(name, batch, slots, graphs) of a plan in fp16; None is what the engine takes by itself."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row to be measured, or with `reason` one that cannot run here.

    backend: as RowJob's. build: the command that makes the engine, for one that the bench built.
    required: its failure is the bench's; not so for PyTorch's own variants. batch, slots, graphs:
    of a step of the waterfall; None leaves them to the engine.
    """

    name: str
    model: Path
    backend: str = "auto"
    reason: str = ""
    build: str = ""
    build_seconds: float | None = None
    required: bool = True
    batch: int | None = None
    slots: int | None = None
    graphs: bool | None = None


def baseline_checkpoint(models: Sequence[Path]) -> Path:
    """The first checkpoint among them. Raises UserError when there is none."""
    for model in models:
        if not model.is_dir() and model.suffix != ".onnx":
            return model
    raise UserError(
        "the bench compares with PyTorch: it needs the checkpoint",
        seen=" ".join(map(str, models)),
        hint="unetrt bench CHECKPOINT ENGINE_DIR … --images DIR",
    )


def entries_from_models(models: Sequence[Path], checkpoint: Path) -> list[Entry]:
    """The reference loop, then the models as they are."""
    named = [Entry(name=str(model), model=model) for model in models]
    return [reference_entry(checkpoint), *named]


def reference_entry(checkpoint: Path) -> Entry:
    return Entry(name="reference loop", model=checkpoint, backend=REFERENCE)


def entries_from_checkpoint(
    checkpoint: Path, folder: Path, sizes: Sequence[Size], device: str, scale: float | None
) -> list[Entry]:
    """Every row of the waterfall, the engines built below `folder`, those that cannot run too.

    sizes: (H, W) of the images, which plans are built for.
    """
    entries = [
        reference_entry(checkpoint),
        Entry(name="torch-channels-last", model=checkpoint),
        *(Entry(name=name, model=checkpoint, backend=name, required=False) for name in VARIANTS),
    ]
    statuses = {status.name: status for status in probe_backends()}
    for backend, precision in CPU_ENGINES + GPU_ENGINES:
        name = f"{backend}-{precision}"
        reason = _obstacle(statuses[backend], precision, device)
        if reason:
            entries += entry_steps(
                Entry(name=name, model=checkpoint, reason=reason), backend, precision
            )
        else:
            options = build_options(backend, precision, sizes, scale)
            built = _built_entry(checkpoint, folder / name, options)
            entries += entry_steps(built, backend, precision)
    return entries


def build_options(
    backend: str, precision: str, sizes: Sequence[Size], scale: float | None
) -> BuildOptions:
    """Published whatever its gate says, and built anew: the time of a build is a column."""
    return BuildOptions(
        backend=backend,
        precision=precision,
        overrides=SpecOverrides(scale=scale),
        gate=GateOptions(force=True),
        plan=PlanOptions(sizes=tuple(sizes)),
        rebuild=True,
    )


def entry_steps(entry: Entry, backend: str, precision: str) -> list[Entry]:
    """The entry; a plan in fp16 as the steps of the waterfall, each with its own gain."""
    if not backend.startswith("tensorrt") or precision != "fp16":
        return [entry]
    return [
        replace(
            entry,
            name=entry.name + step,
            batch=batch,
            slots=slots,
            graphs=graphs,
            required=graphs is not True and entry.required,
        )
        for step, batch, slots, graphs in GPU_STEPS
    ]


@dataclass(frozen=True)
class BuildCommand:
    """The line that makes an entry's engine, '' for a model that is no engine; and its name."""

    line: str
    target: str


def build_command(entry: Entry) -> BuildCommand:
    """Of an engine that the bench built, or of a directory by what its manifest says."""
    if entry.build:
        return BuildCommand(entry.build, "ENGINE")
    if not (entry.model / MANIFEST).is_file():
        return BuildCommand("", str(entry.model))
    manifest = read_manifest(entry.model)
    source = manifest.source.get("name", "CHECKPOINT")
    line = (
        f"unetrt build {source} -o {entry.model} --backend {manifest.backend} "
        f"--precision {manifest.precision}"
    )
    return BuildCommand(line, str(entry.model))


def _obstacle(status: BackendStatus, precision: str, device: str) -> str:
    """Why a row cannot run here, or ''."""
    if not (status.builds and status.runs):
        return f"{status.name} does not run here: {status.detail}"
    if precision not in PRECISIONS[status.name]:
        return f"{status.name} is not built in {precision} in this version"
    on_gpu = status.name.startswith("tensorrt")
    if on_gpu != device.startswith("cuda") and device != "auto":
        return f"{status.name} does not run on {device}"
    return ""


def _built_entry(checkpoint: Path, directory: Path, options: BuildOptions) -> Entry:
    """An engine whose gate fails is measured too: the table shows the agreement itself."""
    start = time.perf_counter()
    try:
        build_engine(checkpoint, directory, options)
    except UserError as error:
        return Entry(name=directory.name, model=checkpoint, reason=error.reason)
    return Entry(
        name=directory.name,
        model=directory,
        build=f"unetrt build {checkpoint} -o ENGINE --backend {options.backend} "
        f"--precision {options.precision}",
        build_seconds=time.perf_counter() - start,
    )
