"""What goes to a row's process and what comes back: plain values, JSON on the way."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from ..contract.spec import NO_OVERRIDES, SpecOverrides, mask_values_from_json
from ..contract.types import Size
from .layers import LayerTable, layer_table_from_dict
from .machine import cuda_device
from .measure import Latency, WarmUp
from .nvml import DeviceUse, use_from_dict
from .stages import StageTable, stage_table_from_dict

REFERENCE = "reference"
"""The backend name of the baseline row."""
VARIANTS = ("torch-half", "torch-compile")
"""Of PyTorch, see torch_rows; backends of the bench alone."""


def job_fields(text: str) -> dict[str, Any]:
    """Of a RowJob or a SweepJob, from the JSON of asdict."""
    raw = json.loads(text)
    values = raw["overrides"]["mask_values"]
    values = values and mask_values_from_json(values)
    return {**raw, "overrides": SpecOverrides(**{**raw["overrides"], "mask_values": values})}


@dataclass(frozen=True, kw_only=True)
class RowJob:
    """model: what to open. outputs: where the masks go, one an image. seconds: of a repeat.

    backend: REFERENCE, a name of VARIANTS, or what `open_engine` takes. layers: the engine's own
    profiler runs, after all that is timed. slots, graphs: None leaves them to the engine.
    bit_depth: as PredictOptions'. until: by time.time(), when the row is given up. files_only:
    nothing but passes over the files, of the reference loop. pass_images: that such a pass takes
    of images of one size; None finds it out.
    """

    name: str
    model: str
    backend: str
    device: str
    images: list[str]
    outputs: list[str]
    seconds: float
    repeats: int
    batch: int | None = None
    overrides: SpecOverrides = NO_OVERRIDES
    layers: bool = False
    slots: int | None = None
    graphs: bool | None = None
    bit_depth: int | None = None
    until: float = math.inf
    files_only: bool = False
    pass_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Images a second of every repeat; what was opened, and how long that took.

    engine_only: empty where it was not measured; with_copies: the same list on a CPU, which
    copies to no device. flops: of one image. first_seconds: of the first batch, compiling
    included. host_bytes: the process's peak; device_bytes: of the GPU, None on a CPU. use: of
    the GPU while it was measured; use_reason: why that is not known. again: how many of
    files_to_files, the last, were measured between and after all other rows, in a process each.
    others: share of the usable cores that others kept busy during files to files; None where
    that is not known. multiplies: the precision of the products, where it is not `precision`.
    memory_by: who told of device_bytes, see device_memory. of_engine: what each pass of
    files_to_files reached of the faster of engine_only and with_copies, measured right before
    and after it; empty for the reference loop, and where images are of several sizes: the
    engine runs the commonest alone. model_bytes: of the model's file on disk. graphs: slots
    replayed CUDA graphs. shapes: sizes among the images. pass_images: of a timed pass, each as
    often as it was gone over; 0 in reports that do not tell.
    """

    name: str
    label: str
    precision: str
    device: str
    batch: int
    slots: int
    input_size: Size
    mask_size: Size
    flops: int
    open_seconds: float
    first_seconds: float
    warm_up: WarmUp
    engine_only: list[float]
    with_copies: list[float]
    files_to_files: list[float]
    latency: Latency
    host_bytes: int
    device_bytes: int | None = None
    stages: StageTable | None = None
    layers: LayerTable | None = None
    use: DeviceUse | None = None
    use_reason: str = ""
    again: int = 0
    others: float | None = None
    multiplies: str = ""
    memory_by: str = ""
    graphs: bool = False
    shapes: int = 1
    model_bytes: int = 0
    of_engine: list[float] = field(default_factory=list)
    pass_images: int = 0

    @property
    def on_gpu(self) -> bool:
        return bool(cuda_device(self.device))

    @property
    def peak_precision(self) -> str:
        """Of the peak that its products are held against."""
        return self.multiplies or self.precision

    @property
    def engine_rate(self) -> float:
        """Engine-only where it was measured, else with copies."""
        return statistics.median(self.engine_only or self.with_copies)

    @property
    def fastest_rate(self) -> float:
        """Of the two regions the faster: on CUDA the one with copies alone runs CUDA graphs."""
        return max(statistics.median(r) for r in (self.engine_only, self.with_copies) if r)

    @property
    def files_rate(self) -> float:
        return statistics.median(self.files_to_files)

    @property
    def share_text(self) -> str:
        """What files to files reaches of the engine, ± half the range in points; '' if unknown."""
        if not self.of_engine:
            return ""
        half = (max(self.of_engine) - min(self.of_engine)) / 2
        told = f" ± {half:.1%}" if len(self.of_engine) > 1 else ""
        return f"{statistics.median(self.of_engine):.1%}{told}"

    @property
    def achieved(self) -> float:
        """Floating-point operations a second of the network, by `engine_rate`."""
        return self.flops * self.engine_rate


def result_from_dict(raw: dict[str, Any]) -> RowResult:
    """The inverse of `dataclasses.asdict`."""
    stages, layers, use = raw.get("stages"), raw.get("layers"), raw.get("use")
    parts = {
        "input_size": tuple(raw["input_size"]),
        "mask_size": tuple(raw["mask_size"]),
        "warm_up": WarmUp(**raw["warm_up"]),
        "latency": Latency(**raw["latency"]),
        "stages": None if stages is None else stage_table_from_dict(stages),
        "layers": None if layers is None else layer_table_from_dict(layers),
        "use": None if use is None else use_from_dict(use),
    }
    return RowResult(**{**raw, **parts})
