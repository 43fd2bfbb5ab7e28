"""Where an engine's own time goes, layer by layer, held against the network's arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.spec import ModelSpec
from ..contract.types import Size
from .flops import Convolution, network_convolutions

PRECISIONS = {
    "f32": "fp32",
    "float": "fp32",
    "fp32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "f16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "i8": "int8",
    "u8": "uint8",
    "int8": "int8",
    "uint8": "uint8",
}
"""The profilers' words for what a layer ran in → ours; other words stay as they are."""

OPENVINO_BYTES = "I8"
"""OpenVINO's word for a layer whose first input is u8; of one that is i8 it writes `i8`."""
MULTIPLIES = ("conv", "matmul", "gemm", "fullyconnected")
"""In the kind of a layer that multiplies: on uint8 values, with int8 weights, that is int8."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A profiler's word for a layer: seconds of one batch, on the stream that ran it."""

    name: str
    kind: str
    precision: str
    seconds: float

    @property
    def is_convolution(self) -> bool:
        return "conv" in _without_casts(self.kind)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """ms: of a batch. block: of the network, and flops of the batch: for a convolution, if known.

    Batches run on several streams at once: a stream's time counts by its share of the device.
    """

    name: str
    kind: str
    precision: str
    ms: float
    block: str = ""
    flops: int | None = None

    @property
    def achieved(self) -> float | None:
        """Floating-point operations a second."""
        return self.flops / self.ms * 1000 if self.flops and self.ms else None


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Of the batches that ran under the profiler; wall: ms of one, by the clock around them all."""

    profiler: str
    batch: int
    runs: int
    streams: int
    wall: float
    layers: tuple[Layer, ...]

    @property
    def total(self) -> float:
        """Milliseconds of all layers, to be held against those of a batch, engine only."""
        return sum(layer.ms for layer in self.layers)


def layer_table_from_dict(raw: dict[str, Any]) -> LayerTable:
    """The inverse of `dataclasses.asdict`."""
    return LayerTable(**{**raw, "layers": tuple(Layer(**layer) for layer in raw["layers"])})


def mean_records(runs: Iterable[Iterable[Record]]) -> list[Record]:
    """Each layer's mean over the runs, in the order of the first; what took no time left out."""
    first: dict[str, Record] = {}
    seconds: dict[str, float] = {}
    count = 0
    for run in runs:
        count += 1
        for record in run:
            first.setdefault(record.name, record)
            seconds[record.name] = seconds.get(record.name, 0.0) + record.seconds
    return [
        Record(name=r.name, kind=r.kind, precision=r.precision, seconds=seconds[r.name] / count)
        for r in first.values()
        if seconds[r.name] > 0
    ]


def layers_from_records(
    records: Sequence[Record], spec: ModelSpec, size: Size, batch: int, streams: int
) -> tuple[Layer, ...]:
    """In the order they ran. The n-th convolution is the network's n-th: none can run earlier.

    An engine that has more or fewer convolutions than the network has fused or split some: its
    layers stay without block and arithmetic.
    """
    known = _known_convolutions([r for r in records if r.is_convolution], spec, size)
    return tuple(_layer(record, known.get(record.name), batch, streams) for record in records)


def _known_convolutions(
    found: Sequence[Record], spec: ModelSpec, size: Size
) -> Mapping[str, Convolution]:
    wanted = network_convolutions(spec, size)
    if len(found) != len(wanted):
        return {}
    return {record.name: conv for record, conv in zip(found, wanted, strict=True)}


def _layer(record: Record, known: Convolution | None, batch: int, streams: int) -> Layer:
    return Layer(
        name=record.name,
        kind=record.kind,
        precision=record.precision,
        ms=1000 * record.seconds / streams,
        block=known.block if known else "",
        flops=known.flops * batch if known else None,
    )


def precision_from_text(text: str, kind: str = "") -> str:
    """`brgconv_avx512_bf16` → bf16, `float16` → fp16, `Half` → fp16.

    uint8 stays uint8, as a picture's cast to fp32 has it, but for a `kind` that multiplies.
    """
    last = text.rpartition("_")[2]
    found = "uint8" if last == OPENVINO_BYTES else PRECISIONS.get(last.lower(), last.lower())
    multiplies = any(word in _without_casts(kind) for word in MULTIPLIES)
    return "int8" if found == "uint8" and multiplies else found


def _without_casts(kind: str) -> str:
    """A Convert is no convolution."""
    return kind.lower().replace("convert", "")
