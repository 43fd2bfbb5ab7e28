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


_UNCOUNTED = {"CONSTANT", "QUANTIZE", "DEQUANTIZE"}
"""They compute nothing, or are part of the layers beside them."""


def layers_from_network(trt: Any, network: Any) -> list[Layer]:
    """Every layer in order. Only those whose output is of a compute type have a precision."""
    dequantised: set[str] = set()
    return [_layer(trt, network.get_layer(i), dequantised) for i in range(network.num_layers)]


def _layer(trt: Any, layer: Any, dequantised: set[str]) -> Layer:
    """Add the outputs of a dequantising layer to `dequantised`."""
    kind = _KINDS.get(layer.type.name, "other")
    found = [layer.get_output(i) for i in range(layer.num_outputs)]
    outputs = [tensor for tensor in found if tensor is not None]
    found = [layer.get_input(i) for i in range(layer.num_inputs)]
    inputs = [tensor for tensor in found if tensor is not None]
    precision = _PRECISIONS.get(outputs[0].dtype.name, "") if outputs else ""
    names = tuple(tensor.name for tensor in inputs)
    if layer.type.name == "DEQUANTIZE":
        dequantised.update(tensor.name for tensor in outputs)
    weights = 0
    if kind in ("conv", "deconv"):
        weights = _weights(trt, layer, kind, inputs[0])
        precision = "int8" if len(names) > 1 and dequantised.issuperset(names[:2]) else precision
    return Layer(
        layer.name,
        kind,
        "" if layer.type.name in _UNCOUNTED else precision,
        names,
        tuple(tensor.name for tensor in outputs),
        weights,
    )


def _weights(trt: Any, layer: Any, kind: str, features: Any) -> int:
    # The bindings give every layer its base class: the documented way to the others.
    layer.__class__ = trt.IConvolutionLayer if kind == "conv" else trt.IDeconvolutionLayer
    return int(math.prod(layer.kernel_size_nd) * layer.num_output_maps * features.shape[1])


def require_precision(layers: Sequence[Layer], precision: str, kept: int = 0) -> None:
    """Raise UserError for convolutions in another precision than the build's.

    kept: how many of them are in fp32 because blocks were named that stay so. The first and the
    last convolution of an int8 network are not looked at.
    """
    convolutions = [x for x in layers if x.weights]
    judged = convolutions[1:-1] if precision == "int8" else convolutions
    stray = [x.name for x in judged if x.precision != precision]
    if not precision or len(stray) <= kept:
        return
    raise UserError(
        f"a plan in {precision} would compute convolutions in another precision",
        seen=f"{len(stray)} of {len(judged)}: {', '.join(stray[:4])}",
        expected=f"at most {kept}" if kept else f"every convolution in {precision}",
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
