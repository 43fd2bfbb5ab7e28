"""A graph in bf16 as one in fp32 that rounds where it does: ONNX Runtime has no bf16 on a CPU."""

from __future__ import annotations

from typing import Any

from ..contract.modules import import_module

_EXACT = {
    *("Concat", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Slice", "Squeeze"),
    *("Transpose", "Unsqueeze"),
}
"""What gives numbers that bf16 holds from numbers that it holds."""


def rounding_from_bf16(model: Any) -> Any:
    """A copy of the onnx.ModelProto with fp32 in place of bf16.

    What bf16 arithmetic gives is rounded by two casts, as a GPU that sums in fp32 rounds it.
    """
    onnx = import_module("onnx")
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    rounded = _rounded_tensors(onnx, model, half)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    for weight in graph.initializer:
        _widen(onnx, weight)
    del graph.value_info[:], graph.node[:]
    for original in model.graph.node:
        node = graph.node.add()
        node.CopyFrom(original)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single
            _widen(onnx, attribute.t)
        name = node.output[0]
        if name in rounded:
            node.output[0] = f"{name}.exact"
            make = onnx.helper.make_node
            first = make("Cast", [node.output[0]], [f"{name}.bf16"], to=half)
            graph.node.extend([first, make("Cast", [f"{name}.bf16"], [name], to=single)])
    return found


def _widen(onnx: Any, tensor: Any) -> None:
    """A TensorProto of bf16 becomes one of fp32; others stay."""
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        array = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _rounded_tensors(onnx: Any, model: Any, half: int) -> set[str]:
    """The bf16 tensors that arithmetic gives."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    return {
        node.output[0]
        for node in inferred.node
        if types.get(node.output[0]) == half and node.op_type not in _EXACT
    }
