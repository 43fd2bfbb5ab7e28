"""Biases of transposed convolutions as additions of their own, so that cuDNN fuses the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.modules import import_module
from .onnxfile import read_onnx


def graph_with_biases_apart(path: Path) -> bytes | None:
    """The file's graph, in which no transposed convolution has a bias; None where one must.

    Asked to fuse biases, ONNX Runtime 1.31 fuses those of convolutions, and fails at a transposed
    one: "For dgrad node, output dimension inferencing is not possible". Raises UserError for a file
    that is not ONNX.
    """
    model = read_onnx(path)
    helper, arrays = import_module("onnx").helper, import_module("onnx").numpy_helper
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ConvTranspose" or len(node.input) < 3 or not node.input[2]:
            continue
        bias = weights.get(node.input[2])
        if bias is None:
            return None
        column = arrays.to_array(bias).reshape(1, -1, 1, 1)
        name, output = f"{node.name or node.output[0]}_bias", node.output[0]
        model.graph.initializer.append(arrays.from_array(column, name))
        del node.input[2:]
        node.output[0] = f"{name}_added_to"
        nodes.append(helper.make_node("Add", [node.output[0], name], [output], name=f"{name}_add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data
