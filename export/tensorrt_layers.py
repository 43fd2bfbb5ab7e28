"""The layers of a strongly typed TensorRT network: what each computes in, before the build."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..contract.errors import UserError
from .layers import Layer

_KINDS = {
    "CONVOLUTION": "conv",
    "DECONVOLUTION": "deconv",
    "POOLING": "pool",
    "RESIZE": "resize",
}
_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}


def layers_from_network(trt: Any, network: Any) -> list[Layer]:
    """Every layer in order. Only those whose output is of a compute type have a precision."""
    return [_layer(trt, network.get_layer(i)) for i in range(network.num_layers)]


def _layer(trt: Any, layer: Any) -> Layer:
    kind = _KINDS.get(layer.type.name, "other")
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    precision = _PRECISIONS.get(outputs[0].dtype.name, "") if outputs and outputs[0] else ""
    return Layer(
        layer.name,
        kind,
        precision,
        tuple(tensor.name for tensor in inputs if tensor is not None),
        tuple(tensor.name for tensor in outputs if tensor is not None),
        _weights(trt, layer, kind, inputs[0]) if kind in ("conv", "deconv") else 0,
    )


def _weights(trt: Any, layer: Any, kind: str, features: Any) -> int:
    # The bindings give every layer its base class: the documented way to the others.
    layer.__class__ = trt.IConvolutionLayer if kind == "conv" else trt.IDeconvolutionLayer
    return int(math.prod(layer.kernel_size_nd) * layer.num_output_maps * features.shape[1])


def require_precision(layers: Sequence[Layer], precision: str, allowed: Sequence[str]) -> None:
    """Raise UserError for a convolution in fp32 in an fp16 build; `allowed` blocks may be."""
    stray = [x.name for x in layers if x.weights and x.precision != "fp16"]
    if precision != "fp16" or allowed or not stray:
        return
    raise UserError(
        "an fp16 plan would compute convolutions in another precision",
        seen=f"{len(stray)} of them: {', '.join(stray[:4])}",
        expected="every convolution in fp16",
        hint="--precision fp32, or a checkpoint instead of this ONNX file",
    )


def count_types(network: Any) -> dict[str, int]:
    """Layers counted by the type of their output, those that compute shapes too."""
    return dict(Counter(_types(network)))


def _types(network: Any) -> Iterator[str]:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs and layer.get_output(0) is not None:
            yield layer.get_output(0).dtype.name.lower()
