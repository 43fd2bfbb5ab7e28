"""fp32 ONNX → int8 ONNX (explicit Q/DQ), its ranges measured on calibration images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UserError
from ..contract.files import image_paths
from ..contract.log import log
from ..contract.modules import import_module
from ..contract.progress import Advance, show_progress
from ..contract.spec import ModelSpec
from ..engine.onnxfile import PRECISION_KEY, read_onnx
from ..training.checkpoint import Golden
from .source import Source, gate_inputs, load_inputs

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


def calibration_inputs(source: Source, folder: Path | None, gate: Path | None) -> Calibration:
    """Images of `folder`, else what the gate looks at, at most MAX_IMAGES of them."""
    inputs: list[Path] | list[Golden]
    if folder is not None:
        inputs, kind = image_paths(folder), "calibration"
    else:
        inputs, kind = gate_inputs(source, gate)
    if kind == "synthetic":
        log.warning("int8 is calibrated on drawn pictures: --calibration DIR takes real ones")
    step = -(-len(inputs) // MAX_IMAGES)
    return Calibration(kind, inputs[::step], source.spec)


def int8_from_onnx(source: Path, target: Path, calibration: Calibration) -> None:
    """Write the int8 graph; its uint8 input and mask stay, and so do its dynamic shapes.

    The last convolution and what follows it stay in floats: classes do not tie, and an output
    that is not finite is still seen. Activations are uint8, one range a tensor (least to most
    seen); weights int8, one range an output channel.
    Raises UserError when the graph cannot be quantised.
    """
    quantization = import_module("onnxruntime.quantization")
    with show_progress("calibrate", len(calibration.inputs)) as advance, _quiet():
        try:
            quantization.quantize_static(
                str(source),
                str(target),
                _reader(quantization.CalibrationDataReader, calibration, advance),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=_after_features(source),
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ONNX Runtime cannot quantise {source}", seen=error) from error
    _finish(source, target)


def _after_features(source: Path) -> list[str]:
    """Names of the nodes from the last convolution on."""
    nodes = list(read_onnx(source).graph.node)
    last = max(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    return [node.name for node in nodes[last:]]


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
