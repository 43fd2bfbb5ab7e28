"""Convolutions of what was concatenated, part by part in OpenVINO: the same masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.batches import in_batches
from unetrt.contract.types import U8, Size
from unetrt.engine import openvino_backend
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.openvino_backend import OpenVinoEngine, openvino_core, supports_bf16
from unetrt.engine.openvino_split import PARTS, split_concatenations
from unetrt.export.int8 import calibration_inputs, int8_from_onnx
from unetrt.export.source import read_source

UPS = 4
"""Where the U-Net concatenates."""


def nodes(model: Any) -> Counter[str]:
    """How often each kind of node is in a model; of Concat, those of pictures."""
    found = model.get_ordered_ops()
    pictures = [n for n in found if n.get_output_partial_shape(0).rank.get_length() == 4]
    return Counter(node.get_type_name() for node in pictures)


@pytest.mark.parametrize("arguments", [{}, {"classes": 1}, {"bilinear": True}, {"channels": 3}])
def test_each_concatenation_becomes_two_convolutions(
    arguments: dict[str, int], exported: Callable[..., Path]
) -> None:
    model = openvino_core().read_model(str(exported(**arguments)))
    before = nodes(model)
    split_concatenations(model)
    after = nodes(model)
    assert (before["Concat"], after["Concat"]) == (UPS, 0)
    assert after["Convolution"] == before["Convolution"] + UPS
    names = [n.get_friendly_name() for n in model.get_ops()]
    assert [sum(name.endswith(part) for name in names) for part in PARTS] == [UPS, UPS]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("arguments", [{}, {"bilinear": True}, {"channels": 3}])
@pytest.mark.parametrize(("shape", "size"), [((48, 37), (91, 75)), ((32, 9), (32, 9))])
def test_its_masks_are_those_of_the_concatenation(
    precision: str,
    arguments: dict[str, int],
    shape: Size,
    size: Size,
    exported: Callable[..., Path],
    steel: Callable[..., U8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "bf16" and not supports_bf16():
        pytest.skip("this processor has no bfloat16")
    path = exported(**arguments, **({"precision": "fp16"} if precision == "fp16" else {}))
    images = np.stack([steel(i, *shape, arguments.get("channels", 1)) for i in range(2)])

    def masks() -> U8:
        with OpenVinoEngine(path, metadata_from_onnx(path)[0], precision) as engine:
            return in_batches(engine, images, size, len(images))

    split = masks()
    monkeypatch.setattr(openvino_backend, "split_concatenations", lambda model: None)
    joined = masks()
    assert len(np.unique(joined)) > 1
    assert (split == joined).mean() > (0.98 if precision == "bf16" else 0.9995)


def test_an_int8_model_stays_as_it_is(exported: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    int8_from_onnx(exported(), path, calibration_inputs(read_source(exported()), None, None))
    model = openvino_core().read_model(str(path))
    before = nodes(model)
    split_concatenations(model)
    assert nodes(model) == before
    assert before["Concat"] == UPS
