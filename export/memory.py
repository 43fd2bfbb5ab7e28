"""Memory that a model takes: its weights, and the features that live at once, from its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ..contract.modules import import_module
from ..contract.spec import MIN_SIDE
from ..contract.types import Size

Shape = tuple[int, ...]

_FUSED = {"Relu", "QuantizeLinear", "DequantizeLinear", "Identity"}
"""Part of the layer before or after them: their output needs no memory of its own."""
_SHAPES_ONLY = {"Shape", "Squeeze", "Constant", "ReduceMin", "ReduceSum"}


@dataclass(frozen=True)
class Feature:
    """A tensor (N, …) that the network computes, with its size in bytes."""

    name: str
    shape: Shape
    bytes: int


def weight_bytes(model: Any) -> int:
    """Of all the numbers that an ONNX model holds."""
    sizes = import_module("onnx").helper.tensor_dtype_to_np_dtype
    values = model.graph.initializer
    return sum(prod(value.dims) * int(sizes(value.data_type).itemsize) for value in values)


def activation_bytes(model: Any, image: Shape, mask: Size) -> int:
    """The most that is alive at once, for images (N, h, w, C) and masks (H, W): an estimate.

    Each tensor lives from the node that makes it to the last that reads it. ReLU and quantising
    are taken as part of their convolutions; an engine that fuses more needs less.
    """
    graph = model.graph
    features = {f.name: f.bytes for f in features_of_graph(model, image, mask)}
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        source = node.input[0] if node.input else ""
        if node.op_type in _FUSED and source in features:
            kept = owner[node.output[0]] = owner.get(source, source)
            features[kept] = min(features[kept], features[node.output[0]])
        for name in (*node.input, *node.output):
            last[owner.get(name, name)] = index
    alive, most = {"image": prod(image)}, 0
    for index, node in enumerate(graph.node):
        made = [name for name in node.output if name in features and name not in owner]
        alive.update({name: features[name] for name in made})
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return most


def features_of_graph(model: Any, image: Shape, mask: Size) -> Iterator[Feature]:
    """Every tensor that is computed from the image, in order, in the shape that it takes.

    ONNX's own shape inference ends at the first padding, whose widths are computed; a U-Net's
    paddings keep the size of the features they are joined with.
    """
    onnx = import_module("onnx")
    model = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in _values(model.graph)}
    constants = _constants(model.graph)
    last = max(i for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    shapes: dict[str, Shape] = {"image": image}
    for index, node in enumerate(model.graph.node):
        known = [shapes[name] for name in node.input if name in shapes]
        if not known or node.op_type in _SHAPES_ONLY:
            continue
        if index > last:
            shape = _end_of(node, known[0], constants, mask)
        else:
            shape = _shape_of(node, known, constants, image[3])
        name = node.output[0]
        shapes[name] = shape
        width = onnx.helper.tensor_dtype_to_np_dtype(kinds[name]).itemsize
        yield Feature(name, shape, prod(shape) * int(width))


def _values(graph: Any) -> Iterator[Any]:
    yield from (*graph.value_info, *graph.output)


def _constants(graph: Any) -> dict[str, Any]:
    """What is stored, by the names that nodes take it under; quantised weights too."""
    to_array = import_module("onnx").numpy_helper.to_array
    found = {value.name: to_array(value) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _shape_of(node: Any, known: list[Shape], constants: dict[str, Any], channels: int) -> Shape:
    """Up to the logits; what has no rule of its own keeps its shape."""
    shape, kind = known[0], node.op_type
    if kind == "Transpose":
        return (shape[0], shape[3], *shape[1:3])
    if kind == "Pad" and shape[1] == channels:  # of the image
        return (*shape[:2], *(max(MIN_SIDE, side) for side in shape[2:]))
    if kind == "Conv":
        return (shape[0], constants[node.input[1]].shape[0], *shape[2:])
    if kind == "ConvTranspose":
        return (shape[0], constants[node.input[1]].shape[1], 2 * shape[2], 2 * shape[3])
    if kind == "Resize":
        return (*shape[:2], 2 * shape[2], 2 * shape[3])
    if kind == "MaxPool":
        return (*shape[:2], shape[2] // 2, shape[3] // 2)
    if kind == "Concat":
        sides = (max(s[2] for s in known), max(s[3] for s in known))
        return (shape[0], sum(s[1] for s in known), *sides)
    return shape


def _end_of(node: Any, shape: Shape, constants: dict[str, Any], mask: Size) -> Shape:
    """From logits to a mask."""
    kind = node.op_type
    if kind == "Slice" and constants.get(node.input[3], [0])[0] == 1:  # of the classes
        start, stop = (int(constants[name][0]) for name in node.input[1:3])
        return (shape[0], len(range(*slice(start, stop).indices(shape[1]))), *shape[2:])
    if kind == "Resize":
        return (*shape[:2], *mask)
    if kind in ("ArgMax", "Gather"):
        return (shape[0], *shape[2:])
    return shape
