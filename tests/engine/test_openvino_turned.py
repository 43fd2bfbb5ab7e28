"""Images whose columns are rows while OpenVINO computes them: the same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.batches import in_batches
from unetrt.contract.spec import SpecOverrides
from unetrt.contract.types import U8, Size
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.openvino_backend import OpenVinoEngine, supports_bf16
from unetrt.engine.openvino_turned import better_turned
from unetrt.export.int8 import calibration_inputs, int8_from_onnx
from unetrt.export.onnx_export import onnx_from_checkpoint
from unetrt.export.source import read_source
from unetrt.training.checkpoint import read_checkpoint


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 959), True),
        ((959, 640), False),
        ((640, 960), False),
        ((200, 200), False),
        ((100, 200), False),
        ((200, 100), True),
        ((959, 479), False),
        ((16, 24), True),
    ],
)
def test_the_rounder_side_is_to_be_the_columns(size: Size, expected: bool) -> None:
    assert better_turned(size) == expected


def results(path: Path, images: U8, size: Size, turned: bool, precision: str = "fp32") -> U8:
    with OpenVinoEngine(path, metadata_from_onnx(path)[0], precision) as engine:
        engine._turns = turned
        found = in_batches(engine, images, size, len(images))
        assert (engine._turned is not None) == turned
        return found


KINDS: list[dict[str, int]] = [{}, {"classes": 1}, {"bilinear": True}, {"channels": 3}]


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize(("shape", "size"), [((48, 37), (91, 75)), ((32, 9), (32, 9))])
def test_turned_images_have_the_masks_of_upright_ones(
    arguments: dict[str, int],
    shape: Size,
    size: Size,
    exported: Callable[..., Path],
    steel: Callable[..., U8],
) -> None:
    path = exported(**arguments)
    images = np.stack([steel(i, *shape, arguments.get("channels", 1)) for i in range(2)])
    upright, turned = (results(path, images, size, turns) for turns in (False, True))
    assert upright.shape == turned.shape
    assert len(np.unique(upright)) > 1
    assert (upright == turned).mean() > 0.999


def test_probabilities_are_turned_back_by_class(
    checkpoint_file: Callable[..., Path], steel: Callable[..., U8], tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(checkpoint_file()).with_overrides(SpecOverrides(result="prob"))
    path = tmp_path / "prob.onnx"
    onnx_from_checkpoint(checkpoint, path, "fp32")
    images = steel(0, 48, 37)[None]
    upright, turned = (results(path, images, (91, 75), turns) for turns in (False, True))
    assert upright.shape == turned.shape == (1, 4, 91, 75)
    assert np.abs(upright.astype(int) - turned).max() <= 1


def test_int8_is_turned_too(
    exported: Callable[..., Path], steel: Callable[..., U8], tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    int8_from_onnx(exported(), path, calibration_inputs(read_source(exported()), None, None))
    images = np.stack([steel(i, 48, 37) for i in range(2)])
    upright, turned = (results(path, images, (48, 37), turns, "int8") for turns in (False, True))
    assert len(np.unique(upright)) > 1
    assert (upright == turned).mean() > 0.99


@pytest.mark.parametrize(
    ("precision", "flags", "expected"),
    [
        ("bf16", {"amx_tile"}, True),
        ("int8", {"amx_tile"}, True),
        ("fp32", {"amx_tile"}, False),
        ("fp16", {"amx_tile"}, False),
        ("bf16", {"avx512_bf16"}, False),
    ],
)
def test_images_are_turned_where_amx_multiplies(
    precision: str,
    flags: set[str],
    expected: bool,
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "bf16" and not supports_bf16():
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setattr("unetrt.engine.openvino_backend.cpu_flags", lambda: flags)
    with OpenVinoEngine(exported(), metadata_from_onnx(exported())[0], precision) as engine:
        assert engine._turns is expected
