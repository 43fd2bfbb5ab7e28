"""What the bench measures: the models that are named, or all that a checkpoint can become."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..contract.errors import UserError
from ..contract.files import image_paths
from ..contract.modules import import_module, is_installed
from ..contract.spec import NO_OVERRIDES, SpecOverrides
from ..contract.types import Size
from ..engine.onnxfile import is_onnx
from ..engine.onnxruntime_cuda import CUDA
from ..engine.openvino_backend import supports_bf16
from ..engine.probe import PRECISIONS, BackendStatus, probe_backends
from ..engine.tensorrt_backend import cuda_devices
from ..export.build import BuildOptions, build_engine
from ..export.gate import GateOptions
from ..export.tensorrt_build import PlanOptions
from ..training.options import values_text
from .job import REFERENCE, VARIANTS
from .machine import wants_cuda
from .text import free_name


class EngineRow(NamedTuple):
    """cuda: on the GPU, of a backend that runs on both; ONNX Runtime only where it is asked for."""

    backend: str
    precision: str
    cuda: bool = False

    @property
    def name(self) -> str:
        return f"{self.backend}{'-cuda' * self.cuda}-{self.precision}"

    @property
    def on_gpu(self) -> bool:
        return self.cuda or self.backend.startswith("tensorrt")


CPU_ENGINES = (
    EngineRow("onnxruntime", "fp32"),
    EngineRow("openvino", "fp32"),
    EngineRow("openvino", "bf16"),
    EngineRow("openvino", "int8"),
)
GPU_ENGINES = (
    EngineRow("onnxruntime", "fp32", cuda=True),
    EngineRow("onnxruntime", "fp16", cuda=True),
    EngineRow("torch", "fp16", cuda=True),
    EngineRow("tensorrt", "fp32"),
    EngineRow("tensorrt", "bf16"),
    EngineRow("tensorrt", "fp16"),
    EngineRow("tensorrt", "int8"),
    EngineRow("tensorrt-rtx", "fp32"),
    EngineRow("tensorrt-rtx", "bf16"),
    EngineRow("tensorrt-rtx", "fp16"),
    EngineRow("tensorrt-rtx", "int8"),
)
ENGINES = CPU_ENGINES + GPU_ENGINES
"""Built from a checkpoint that is given alone; in the order of the waterfall."""

SKIPPED = "left out by --skip"
UNCALIBRATED = (
    "the ranges of int8 were measured on the few images that the checkpoint holds: "
    "--calibration DIR takes a hundred that it was trained on"
)

GRAPH = " + CUDA graph"
GPU_STEPS = (
    ("", 1, 1, False),
    (" + batch", None, 1, False),
    (GRAPH, None, 1, True),
    (" + slots in flight", None, None, None),
)
"""(name, batch, slots, graphs) of a plan in fp16; None is what the engine takes by itself.

PyTorch's engine has the first and GRAPH, with its own batch and slots.
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row to be measured, or with `reason` one that cannot run here.

    backend: as RowJob's. build: the command that makes the engine, for one that the bench built,
    target: the directory that it writes, which is not there yet. required: its failure is the
    bench's; not so for PyTorch's own variants. batch, slots, graphs: of a step of the waterfall;
    None leaves them to the engine. failed: it should have run here, and its build went wrong.
    device: what it is opened on; '' for the bench's own.
    """

    name: str
    model: Path
    backend: str = "auto"
    reason: str = ""
    build: str = ""
    target: str = ""
    build_seconds: float | None = None
    required: bool = True
    batch: int | None = None
    slots: int | None = None
    graphs: bool | None = None
    failed: bool = False
    device: str = ""


def baseline_checkpoint(models: Sequence[Path]) -> Path:
    """The first checkpoint among them. Raises UserError when there is none."""
    for model in models:
        if not model.is_dir() and not is_onnx(model):
            return model
    raise UserError(
        "the bench compares with PyTorch: it needs the checkpoint",
        seen=" ".join(map(str, models)),
        hint="unetrt bench CHECKPOINT ENGINE_DIR … --images DIR",
    )


def entries_from_models(models: Sequence[Path], checkpoint: Path) -> list[Entry]:
    """The reference loop, then the models as they are; one that comes again as `eng (2)`."""
    entries = [reference_entry(checkpoint)]
    for model in models:
        # Rows, masks, peers and comparisons are found by their names: no two are alike.
        taken = [entry.name for entry in entries]
        name = free_name(str(model), taken.__contains__, "{} ({})")
        entries.append(Entry(name=name, model=model))
    return entries


def reference_entry(checkpoint: Path) -> Entry:
    return Entry(name="reference loop", model=checkpoint, backend=REFERENCE)


def check_skipped(skip: Sequence[str], alone: bool) -> None:
    """Raise UserError for rows that there are not, and where the user has named the rows."""
    known = [*VARIANTS, *(row.name for row in ENGINES)]
    unknown = [name for name in skip if name not in known]
    if unknown:
        seen, expected = ", ".join(unknown), ", ".join(known)
        raise UserError("no such row to skip", seen=seen, expected=expected)
    if skip and not alone:
        raise UserError(
            "--skip is of a checkpoint alone, which brings its rows",
            seen="several models",
            hint="leave out the models that are not to be measured",
        )


def check_calibration(calibration: Path | None, alone: bool) -> None:
    """Raise UserError where no engine is built, or from nothing."""
    if calibration is None:
        return
    if not alone:
        raise UserError(
            "--calibration is of a checkpoint alone, whose engines the bench builds",
            seen="several models",
            hint="unetrt build CHECKPOINT -o ENGINE_DIR --precision int8 --calibration DIR",
        )
    image_paths(calibration)


def entries_from_checkpoint(
    checkpoint: Path,
    folder: Path,
    sizes: Sequence[Size],
    device: str,
    overrides: SpecOverrides = NO_OVERRIDES,
    skip: Sequence[str] = (),
    calibration: Path | None = None,
) -> list[Entry]:
    """Every row of the waterfall, the engines built below `folder`, those that cannot run too.

    sizes: (H, W) of the images, which plans are built for. skip: names of rows to leave out.
    calibration: images that the ranges of int8 are measured on.
    """
    entries = [
        reference_entry(checkpoint),
        Entry(name="torch-channels-last", model=checkpoint),
        *(
            Entry(
                name=name,
                model=checkpoint,
                backend=name,
                required=False,
                reason=SKIPPED if name in skip else _no_variant(name, device),
            )
            for name in VARIANTS
        ),
    ]
    statuses = {status.name: status for status in probe_backends()}
    for row in ENGINES:
        skipped = SKIPPED if row.name in skip else ""
        reason = skipped or _obstacle(row, statuses[row.backend], device)
        if reason:
            entry = Entry(name=row.name, model=checkpoint, reason=reason)
        else:
            sys.stderr.write(f"bench: build {row.name}\n")
            options = build_options(row.backend, row.precision, sizes, overrides, calibration)
            entry = _built_entry(checkpoint, folder / row.name, options)
            entry = replace(entry, device=_device_of(row, device))
        entries += entry_steps(entry, row.backend, row.precision)
    return entries


def _device_of(row: EngineRow, device: str) -> str:
    """`auto` opens ONNX Runtime on the CPU: a row of the GPU asks for the GPU."""
    return "cuda" if row.cuda and device == "auto" else ""


def build_options(
    backend: str,
    precision: str,
    sizes: Sequence[Size],
    overrides: SpecOverrides = NO_OVERRIDES,
    calibration: Path | None = None,
) -> BuildOptions:
    """Published whatever its gate says, and built anew: the time of a build is a column."""
    return BuildOptions(
        backend=backend,
        precision=precision,
        overrides=overrides,
        gate=GateOptions(force=True),
        plan=PlanOptions(sizes=tuple(sizes)),
        calibration=calibration if precision == "int8" else None,
        rebuild=True,
    )


def is_uncalibrated(entries: Sequence[Entry], calibration: Path | None) -> bool:
    """Whether an engine in int8 was built on what the checkpoint holds."""
    return calibration is None and any("--precision int8" in entry.build for entry in entries)


def entry_steps(entry: Entry, backend: str, precision: str) -> list[Entry]:
    """The entry; a plan in fp16 as the steps of the waterfall, each with its own gain."""
    if backend == "torch":
        return [entry, replace(entry, name=entry.name + GRAPH, graphs=True, required=False)]
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


def build_line(checkpoint: Path, target: str, options: BuildOptions, forced: bool) -> str:
    """The command that builds what `options` has built; forced: although its gate failed."""
    parts = ["unetrt", "build", str(checkpoint), "-o", target]
    parts += ["--backend", options.backend, "--precision", options.precision]
    parts += override_flags(options.overrides)
    if options.calibration is not None:
        parts += ["--calibration", str(options.calibration)]
    if options.backend.startswith("tensorrt") and options.plan.sizes:
        heights, widths = zip(*options.plan.sizes, strict=True)
        ends = [f"{min(heights)}x{min(widths)}", f"{max(heights)}x{max(widths)}"]
        parts += ["--size", "..".join(dict.fromkeys(ends))]
    return shlex.join([*parts, *["--force"] * forced])


def override_flags(overrides: SpecOverrides) -> list[str]:
    """What `build` and `predict` are told of a checkpoint, as the bench was."""
    values = overrides.mask_values
    given = {
        "--scale": overrides.scale,
        "--mask-threshold": overrides.threshold,
        "--mask-values": values and values_text(values),
    }
    return [part for flag, v in given.items() if v is not None for part in (flag, str(v))]


def _no_variant(name: str, device: str) -> str:
    """Why one of PyTorch's own rows would tell nothing here, or ''."""
    from ..training.step import cpu_computes_bf16

    if name != "torch-half" or wants_cuda(device) or cpu_computes_bf16():
        return ""
    return "this processor has no bf16: in fp32 the row is torch-channels-last"


def _obstacle(row: EngineRow, status: BackendStatus, device: str) -> str:
    """Why a row cannot run here, or ''."""
    if not (status.builds and status.runs):
        if status.runs:
            return f"{row.backend} engines are built for a GPU: {status.detail}"
        return f"{row.backend} does not run here: {status.detail}"
    if row.precision not in PRECISIONS[row.backend]:
        return f"{row.backend} is not built in {row.precision} in this version"
    if row.on_gpu != device.startswith("cuda") and device != "auto":
        return f"a row of {'CUDA' if row.on_gpu else 'the CPU'}, and the bench is of {device}"
    if (row.backend, row.precision) == ("openvino", "bf16") and not supports_bf16():
        return "this processor has no bf16"
    return _no_cuda_provider() if row.cuda and row.backend == "onnxruntime" else ""


def _no_cuda_provider() -> str:
    """Why ONNX Runtime cannot run on a GPU here, or ''."""
    if not cuda_devices():
        return "ONNX Runtime's CUDA provider does not run here: 0 CUDA devices"
    providers = import_module("onnxruntime").get_available_providers()
    if CUDA not in providers:
        return f"this onnxruntime has no {CUDA}: {', '.join(providers)}"
    if not is_installed("pycuda"):
        return "ONNX Runtime's CUDA provider does not run here: pycuda is not installed"
    return ""


def _built_entry(checkpoint: Path, directory: Path, options: BuildOptions) -> Entry:
    """An engine whose gate fails is measured too: the table shows the agreement itself."""
    start = time.perf_counter()
    try:
        built = build_engine(checkpoint, directory, options)
    except UserError as error:
        return Entry(name=directory.name, model=checkpoint, reason=error.reason, failed=True)
    # In the working folder: `build` replaces no other folder.
    target = free_name(f"engine-{directory.name}", lambda name: Path(name).exists())
    return Entry(
        name=directory.name,
        model=directory,
        build=build_line(checkpoint, target, options, forced=bool(built.gate.failures)),
        target=target,
        build_seconds=time.perf_counter() - start,
    )
