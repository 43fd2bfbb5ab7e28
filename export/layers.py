"""What a graph computes in which precision: shares of its layers and of its arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.onnxfile import read_onnx

Shares = dict[str, dict[str, float]]
"""{"layers": {precision: share}, "flops": {precision: share}}; each sums to 1."""

_KINDS = {
    "Conv": "conv",
    "ConvTranspose": "deconv",
    "MaxPool": "pool",
    "Resize": "resize",
    "Concat": "concat",
}
_ONNX_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 3: "int8", 2: "int8"}


@dataclass(frozen=True)
class Layer:
    """kind: conv, deconv, pool, resize or other; weights: numbers in a convolution's kernel.

    The first input is the features. precision: "" for a layer that is not counted.
    """

    name: str
    kind: str
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: int = 0


def precision_shares(layers: Iterable[Layer]) -> Shares:
    """Count layers and multiplications by precision; shapes are those of a U-Net.

    Sizes are dynamic, so that arithmetic is counted in units of the input's pixels: a pooling
    quarters them, a transposed convolution or a resize makes them four times as many.
    """
    depth: dict[str, int] = {}
    counts: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    for layer in layers:
        before = depth.get(layer.inputs[0], 0) if layer.inputs else 0
        after = before + {"pool": 1, "deconv": -1, "resize": -1}.get(layer.kind, 0)
        depth.update(dict.fromkeys(layer.outputs, after))
        if layer.precision:
            counts[layer.precision] += 1
        if layer.weights:
            flops[layer.precision] += layer.weights * 4.0**-before
    return {"layers": _shares(counts), "flops": _shares(flops)}


def _shares(counts: dict[str, float]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: round(count / total, 6) for name, count in sorted(counts.items())}


def onnx_shares(path: Path) -> Shares:
    """Shares of the convolutions of an ONNX file; int8 where both operands are quantised."""
    return precision_shares(_layers_from_onnx(read_onnx(path).graph))


def kept_in_fp32(path: Path, blocks: Sequence[str], precision: str) -> int:
    """Count the convolutions of an ONNX file that are in fp32 as they should be.

    Those of `blocks`, and in a bf16 graph the transposed ones and the last.
    """
    layers = _layers_from_onnx(read_onnx(path).graph)
    found = [layer for layer in layers if layer.weights and layer.precision == "fp32"]
    starts = tuple(f"net.{name}." for name in (*blocks, *(["outc"] if precision == "bf16" else [])))
    deconv = ("deconv",) if precision == "bf16" else ()
    return sum(x.kind in deconv or x.inputs[1].startswith(starts) for x in found)


def _layers_from_onnx(graph: Any) -> Iterator[Layer]:
    initializers = {value.name: value for value in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        kind = _KINDS.get(node.op_type, "other")
        inputs, outputs = tuple(node.input), tuple(node.output)
        if kind in ("conv", "deconv"):
            weight, precision = _weight(node.input[1], initializers, producers)
            yield Layer(node.name, kind, precision, inputs, outputs, weight)
        else:
            yield Layer(node.name, kind, "", inputs, outputs)


def _weight(name: str, initializers: Any, producers: Any) -> tuple[int, str]:
    """(numbers, precision) of a kernel, directly or through a DequantizeLinear."""
    while name not in initializers:
        name = producers[name].input[0]
    value = initializers[name]
    count = 1
    for side in value.dims:
        count *= side
    return count, _ONNX_TYPES.get(value.data_type, "other")
