"""fp32 ONNX → int8 ONNX (explicit Q/DQ), its ranges measured on calibration images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UserError, as_word
from ..contract.log import log
from ..contract.modules import import_module
from ..contract.progress import Advance, show_progress
from ..contract.spec import ModelSpec
from ..engine.onnxfile import PRECISION_KEY, read_onnx
from ..engine.probe import cpu_flags
from ..training.checkpoint import Golden
from .source import Source, gate_inputs, judging_images, load_inputs

MAX_IMAGES = 300
"""Ranges hardly widen after some hundreds of images; of a larger folder every n-th is taken."""


@dataclass(frozen=True)
class Calibration:
    """What ranges are measured on; kind: "calibration", "images", "golden" or "synthetic"."""

    kind: str
    inputs: list[Path] | list[Golden]
    spec: ModelSpec

    def to_dict(self) -> dict[str, Any]:
        return {"inputs": self.kind, "images": len(self.inputs)}


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """Where quantise and dequantise nodes stand, and what they round to.

    symmetric: activations are int8 around 0, else uint8 from least to most. kinds: nodes whose
    inputs are quantised; none for all that ONNX Runtime can, outputs and biases too. first:
    also the first convolution, whose input is the image. narrow: weights in 7 of the 8 bits.
    """

    symmetric: bool = False
    kinds: tuple[str, ...] = ()
    first: bool = True
    narrow: bool = False

    def extra_options(self) -> dict[str, Any]:
        if not self.kinds:
            return {}
        return {
            "ActivationSymmetric": self.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(self.kinds),
        }


ON_CPU = QuantizationScheme()
IN_TENSORRT = QuantizationScheme(symmetric=True, kinds=("Conv", "ConvTranspose"), first=False)
"""TensorRT takes int8 with zero point 0 alone, biases in floats, and no quantised constants but
weights. It moves a quantise node up through concatenations and poolings by itself. Around 0 an
image keeps seven of its eight bits: the first convolution stays in floats."""
WITHOUT_VNNI = QuantizationScheme(narrow=True)
"""There ONNX Runtime adds two products of a uint8 and an int8 in 16 bits, which hold no more than
those of 7-bit weights: others are cut off in silence.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"""
VNNI = {"avx512_vnni", "avx_vnni"}


def scheme_of(backend: str) -> QuantizationScheme:
    """What a backend computes right, ONNX Runtime on this machine's processor."""
    if backend.startswith("tensorrt"):
        return IN_TENSORRT
    flags = cpu_flags()
    saturates = "avx2" in flags and not flags & VNNI
    return WITHOUT_VNNI if backend == "onnxruntime" and saturates else ON_CPU


def calibration_inputs(source: Source, folder: Path | None, gate: Path | None) -> Calibration:
    """Images of `folder`, else what the gate looks at, at most MAX_IMAGES of them."""
    inputs: list[Path] | list[Golden]
    if folder is not None:
        inputs, kind = judging_images(folder), "calibration"
    else:
        inputs, kind = gate_inputs(source, gate)
    if kind == "synthetic":
        log.warning("int8 is calibrated on drawn pictures: --calibration DIR takes real ones")
    step = -(-len(inputs) // MAX_IMAGES)
    return Calibration(kind, inputs[::step], source.spec)


def int8_from_onnx(
    source: Path, target: Path, calibration: Calibration, scheme: QuantizationScheme = ON_CPU
) -> None:
    """Write the int8 graph; its uint8 input and mask stay, and so do its dynamic shapes.

    The last convolution and what follows it stay in floats: classes do not tie, and an output
    that is not finite is still seen. Activations have one range a tensor (least to most seen);
    weights are int8, one range an output channel.
    Raises UserError when the graph cannot be quantised.
    """
    quantization = import_module("onnxruntime.quantization")
    graph = _graph_to_quantise(source)
    # Of a copy of its own that a full disk cut short: what writes it does not tell.
    decode_error = import_module("google.protobuf.message").DecodeError
    kind = quantization.QuantType
    with show_progress("calibrate", len(calibration.inputs)) as advance, _quiet():
        try:
            quantization.quantize_static(
                graph,
                str(target),
                _reader(quantization.CalibrationDataReader, calibration, advance),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=kind.QInt8 if scheme.symmetric else kind.QUInt8,
                weight_type=kind.QInt8,
                per_channel=True,
                reduce_range=scheme.narrow,
                op_types_to_quantize=list(scheme.kinds) or None,
                nodes_to_exclude=_in_floats(graph, scheme),
                extra_options=scheme.extra_options(),
            )
        except (RuntimeError, ValueError, OSError, decode_error) as error:
            raise UserError(
                f"ONNX Runtime cannot quantise {source}",
                seen=error,
                hint=f"df -h {as_word(target.parent.parent)}   says whether the disk is full; "
                "else --precision fp32",
            ) from error
    _finish(source, target)


def _graph_to_quantise(source: Path) -> Any:
    """The file's onnx.ModelProto with a name for each node: other tools take names off.

    What stays in floats is told by its name, which all nodes without one have in common.
    """
    model = read_onnx(source)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"unnamed_{index}"
    return model


def _in_floats(model: Any, scheme: QuantizationScheme) -> list[str]:
    """Names of the nodes from the last convolution on, and of the first one where asked."""
    nodes = list(model.graph.node)
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    first = [] if scheme.first else [nodes[convolutions[0]].name]
    return first + [node.name for node in nodes[convolutions[-1] :]]


def _reader(base: type[Any], calibration: Calibration, advance: Advance) -> Any:
    """What ONNX Runtime pulls network inputs from, one at a time."""
    inputs = load_inputs(calibration.inputs, calibration.spec)

    class Reader(base):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            case = next(inputs, None)
            if case is None:
                return None
            advance(1)
            return {"image": case[0][None], "size_like": np.zeros(case[1], np.uint8)}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises a step that gains nothing here, through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _finish(source: Path, target: Path) -> None:
    """Put back what the quantiser does not keep: the producer and our metadata."""
    onnx = import_module("onnx")
    old, new = onnx.load(str(source)), onnx.load(str(target))
    new.producer_name = old.producer_name
    entries = {p.key: p.value for p in old.metadata_props} | {PRECISION_KEY: "int8"}
    del new.metadata_props[:]
    onnx.helper.set_model_props(new, entries)
    onnx.checker.check_model(new, full_check=True)
    target.write_bytes(new.SerializeToString())
