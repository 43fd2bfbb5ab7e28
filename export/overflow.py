"""Whether an fp16 graph exceeds fp16 on an image, where what runs it computes in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from ..contract.types import NO_CLASS, U8
from ..engine.host import HostEngine
from ..engine.onnxfile import read_onnx
from ..engine.onnxruntime_backend import CPU, session_from_onnx

FP16_MAX = 65504.0


class OverflowProbe(HostEngine):
    """Gives masks of NO_CLASS for an image on which a convolution in fp16 exceeds 65504.

    ONNX Runtime and OpenVINO run fp16 graphs on a CPU in fp32 throughout: what is infinite on a
    GPU is finite there. So the graph is run with the largest number of every convolution and of
    every cast to fp16 as a further output. It needs no checkpoint.
    """

    backend, device, precision = "onnxruntime", "cpu", "fp16"

    def __init__(self, model: Path, spec: ModelSpec) -> None:
        super().__init__(spec)
        graph, self._names, self._damaged = _probed(read_onnx(model))
        self._session: Any = session_from_onnx(graph.SerializeToString(), CPU)

    def infer(self, images: U8, masks: U8) -> None:
        inputs = {"image": images, "size_like": np.zeros(masks.shape[-2:], np.uint8)}
        largest = self._session.run(self._names, inputs) if self._names else []
        # A NaN is not below the bound either.
        fits = all(float(value) <= FP16_MAX for value in largest)
        masks[:] = 0 if fits and not self._damaged else NO_CLASS


def _probed(model: Any) -> tuple[Any, list[str], bool]:
    """(the graph with its further outputs, their names, whether a weight is not finite)."""
    onnx = import_module("onnx")
    graph = model.graph
    half = onnx.TensorProto.FLOAT16
    weights = {w.name: w for w in graph.initializer if w.data_type == half}
    names = []
    for node in [*graph.node]:
        rounds = node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights
        if rounds or (node.op_type == "Cast" and node.attribute[0].i == half):
            names.append(_add_largest(onnx, graph, node.output[0]))
    arrays = (onnx.numpy_helper.to_array(w) for w in weights.values())
    return model, names, not all(np.isfinite(array).all() for array in arrays)


def _add_largest(onnx: Any, graph: Any, tensor: str) -> str:
    """The largest magnitude of a tensor as an output, in fp32 whatever the tensor is in."""
    single, size, largest = (f"{tensor}.{part}" for part in ("single", "size", "largest"))
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Cast", [tensor], [single], to=onnx.TensorProto.FLOAT),
            make("Abs", [single], [size]),
            make("ReduceMax", [size], [largest], keepdims=0),
        ]
    )
    graph.output.append(onnx.helper.make_tensor_value_info(largest, onnx.TensorProto.FLOAT, []))
    return largest
