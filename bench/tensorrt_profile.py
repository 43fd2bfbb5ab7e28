"""TensorRT's IProfiler over a plan. Written for a GPU; it has not run on one yet."""

from __future__ import annotations

import json
from typing import Any

from ..engine.base import Slot
from ..engine.tensorrt_backend import TensorRtEngine
from ..engine.tensorrt_flavour import import_flavour
from .filled import Batch, fill_slot
from .layers import Record, mean_records, precision_from_text
from .profilers import Profile, run_in_turn

Kinds = dict[str, tuple[str, str]]
"""Layer name → (kind, precision), both '' where the plan does not tell."""


def tensorrt_profile(engine: TensorRtEngine, batch: Batch, seconds: float) -> Profile:
    """One batch at a time: with a profiler TensorRT ends each before the next begins."""
    recorder = LayerRecorder(layer_kinds(engine.layer_information()))
    slot = engine.profiled_slot(profiler_of(engine.backend, recorder))
    fill_slot(slot, batch)

    def finish(slot: Slot) -> None:
        slot.masks()
        recorder.end_batch()

    try:
        count, wall = run_in_turn([slot], batch, seconds, finish, recorder.runs.clear)
    finally:
        slot.close()
    return mean_records(recorder.runs), count, wall


class LayerRecorder:
    """Keeps what an IProfiler is told, a list a batch."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.runs: list[list[Record]] = []
        self._running: list[Record] = []

    def layer(self, name: str, ms: float) -> None:
        kind, precision = self.kinds.get(name) or (_kind_from_name(name), "")
        self._running.append(Record(name=name, kind=kind, precision=precision, seconds=ms / 1000))

    def end_batch(self) -> None:
        self.runs.append(self._running)
        self._running = []


def profiler_of(flavour: str, recorder: LayerRecorder) -> Any:
    """An IProfiler that tells the recorder; its class exists only once TensorRT is imported."""
    trt = import_flavour(flavour)

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            recorder.layer(layer_name, ms)

    return Profiler()


def layer_kinds(text: str) -> Kinds:
    """From an engine inspector's JSON; a plan that was not built verbosely has only names."""
    layers = json.loads(text).get("Layers", [])
    return {
        layer["Name"]: (layer.get("LayerType", ""), _precision(layer))
        for layer in layers
        if isinstance(layer, dict)
    }


def _precision(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs") or [{}]
    words = str(outputs[0].get("Datatype") or outputs[0].get("Format/Datatype", "")).split()
    return precision_from_text(words[-1], layer.get("LayerType", "")) if words else ""


def _kind_from_name(name: str) -> str:
    """ONNX's node names survive in a plan's: enough to tell the convolutions."""
    return "convolution" if "conv" in name.lower() and "convert" not in name.lower() else ""
