"""The engines' own profilers: OpenVINO's counters, ONNX Runtime's trace, TensorRT's IProfiler."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract.types import U8
from ..engine.base import Engine, Slot
from ..engine.openvino_split import PARTS
from .filled import Batch, fill_slot
from .layers import LayerTable, Record, layers_from_records, mean_records, precision_from_text

if TYPE_CHECKING:
    from ..engine.onnxruntime_backend import OnnxRuntimeEngine
    from ..engine.openvino_backend import OpenVinoEngine

FEWEST_RUNS = 5

Profile = tuple[list[Record], int, float]
"""The layers of a batch, the batches that ran, and the seconds of one by the clock."""


def profile_layers(engine: Engine, batch: Batch, seconds: float) -> LayerTable | None:
    """Run the batch under the engine's profiler for `seconds`, at least FEWEST_RUNS times.

    As many batches at once as engine-only measurements have. None for PyTorch.
    """
    from ..engine.onnxruntime_backend import OnnxRuntimeEngine
    from ..engine.openvino_backend import OpenVinoEngine
    from ..engine.tensorrt_backend import TensorRtEngine
    from .tensorrt_profile import tensorrt_profile

    streams = 1
    if isinstance(engine, OpenVinoEngine):
        profiler, streams = "OpenVINO's PERF_COUNT", engine.streams
        records, runs, wall = _openvino_profile(engine, batch, seconds)
    elif isinstance(engine, OnnxRuntimeEngine):
        profiler = "ONNX Runtime's profile"
        records, runs, wall = _onnxruntime_profile(engine, batch, seconds)
    elif isinstance(engine, TensorRtEngine):
        profiler = "TensorRT's IProfiler"
        records, runs, wall = tensorrt_profile(engine, batch, seconds)
    else:
        return None
    count = len(batch.images)
    return LayerTable(
        profiler=profiler,
        batch=count,
        runs=runs,
        streams=streams,
        wall=1000 * wall,
        layers=layers_from_records(records, engine.spec, batch.input_size, count, streams),
    )


def _openvino_profile(engine: OpenVinoEngine, batch: Batch, seconds: float) -> Profile:
    """A second engine on the same file: counters are chosen when a model is compiled."""
    from ..engine.openvino_backend import OpenVinoEngine, OpenVinoSlot

    twin = OpenVinoEngine(engine.path, engine.spec, engine.precision, profile=True)
    runs: list[list[Record]] = []
    with twin:
        slots = [twin.slot() for _ in range(engine.slots)]
        for slot in slots:
            fill_slot(slot, batch)

        def finish(slot: Slot) -> None:
            assert isinstance(slot, OpenVinoSlot)
            slot.masks()
            runs.append(openvino_records(slot.layer_times()))

        count, wall = run_in_turn(slots, batch, seconds, finish, runs.clear)
    return mean_records(runs), count, wall


def openvino_records(infos: Sequence[Any]) -> list[Record]:
    """A convolution that runs in parts is one layer, in the place of its last part."""
    found: dict[str, Record] = {}
    for record in map(_openvino_record, infos):
        part = found.pop(record.name, None)
        seconds = record.seconds + (part.seconds if part else 0.0)
        found[record.name] = replace(record, seconds=seconds)
    return list(found.values())


def _openvino_record(info: Any) -> Record:
    name = info.node_name
    for part in PARTS:
        name = name.removesuffix(part)
    return Record(
        name=name,
        kind=info.node_type,
        precision=precision_from_text(info.exec_type, info.node_type),
        seconds=info.real_time.total_seconds(),
    )


def run_in_turn(
    slots: Sequence[Slot],
    batch: Batch,
    seconds: float,
    finish: Callable[[Slot], None],
    warmed: Callable[[], object],
) -> tuple[int, float]:
    """Keep the slots in flight; return the number of batches and the seconds of one.

    Each runs once before the clock starts; `warmed` is called between.
    """
    for slot in slots:
        slot.submit(len(batch.images), batch.size)
        finish(slot)
    warmed()
    started, ended, start = 0, 0, time.perf_counter()
    while ended < started or started == 0:
        more = started < FEWEST_RUNS or time.perf_counter() - start < seconds
        if more and started - ended < len(slots):
            slots[started % len(slots)].submit(len(batch.images), batch.size)
            started += 1
        else:
            finish(slots[ended % len(slots)])
            ended += 1
    return ended, (time.perf_counter() - start) / ended


def _onnxruntime_profile(engine: OnnxRuntimeEngine, batch: Batch, seconds: float) -> Profile:
    from ..engine.onnxruntime_backend import OnnxRuntimeEngine

    images: U8 = np.stack(batch.images)
    masks: U8 = np.empty((len(images), *batch.size), np.uint8)
    with tempfile.TemporaryDirectory(prefix="unetrt-profile-") as name:
        prefix = Path(name) / "profile"
        with OnnxRuntimeEngine(
            engine.path, engine.spec, engine.precision, profile=prefix
        ) as profiled:
            profiled.infer(images, masks)
            count, start = 0, time.perf_counter()
            while count < FEWEST_RUNS or time.perf_counter() - start < seconds:
                profiled.infer(images, masks)
                count += 1
            wall = (time.perf_counter() - start) / count
            events = json.loads(profiled.end_profile().read_text(encoding="utf-8"))
    return records_from_trace(events, count), count, wall


def records_from_trace(events: Sequence[dict[str, Any]], runs: int) -> list[Record]:
    """The layers of the last `runs` runs of an ONNX Runtime profile (a list of trace events).

    https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
    """
    models = [event for event in events if event["name"] == "model_run"]
    if not models:
        return []
    since = sorted(event["ts"] for event in models)[-runs:][0]
    nodes = [e for e in events if e.get("cat") == "Node" and e["ts"] >= since]
    nodes = [event for event in nodes if event["name"].endswith("_kernel_time")]
    means = mean_records([_trace_records(sorted(nodes, key=lambda event: float(event["ts"])))])
    return [
        Record(name=r.name, kind=r.kind, precision=r.precision, seconds=r.seconds / runs)
        for r in means
    ]


def _trace_records(nodes: Sequence[dict[str, Any]]) -> Iterator[Record]:
    for event in nodes:
        outputs = event["args"].get("output_type_shape") or [{}]
        kind = event["args"].get("op_name", "")
        yield Record(
            name=event["name"].removesuffix("_kernel_time"),
            kind=kind,
            precision=precision_from_text(next(iter(outputs[0]), ""), kind),
            seconds=event["dur"] / 1e6,
        )
