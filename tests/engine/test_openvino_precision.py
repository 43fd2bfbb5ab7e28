"""What OpenVINO is asked to compute in, and what an engine says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import precision_hint


@pytest.mark.parametrize(
    ("able", "precision", "hint"),
    [
        (["FP32", "INT8", "BF16"], "int8", "bf16"),
        (["FP32", "INT8"], "int8", "f32"),
        (["FP32", "BF16"], "fp32", "f32"),
        (["FP32", "BF16"], "fp16", "f32"),
        (["FP32", "BF16"], "bf16", "bf16"),
    ],
)
def test_the_hint_is_what_the_processor_has(able: list[str], precision: str, hint: str) -> None:
    assert precision_hint(able, precision) == hint


def test_an_fp16_file_is_computed_in_fp32_and_says_so(exported: Callable[..., Path]) -> None:
    with open_engine(exported("fp16"), "openvino") as engine:
        assert engine.precision == "fp32"
        assert engine.label == "openvino fp32 on cpu"
