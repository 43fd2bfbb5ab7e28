"""fp16 graphs that exceed fp16, found where they are computed in fp32, without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import balanced_checkpoint, steel
from unetrt.contract.errors import GateError
from unetrt.contract.types import NO_CLASS
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.onnx_export import onnx_from_checkpoint
from unetrt.export.overflow import OverflowProbe
from unetrt.training.checkpoint import Checkpoint, write_checkpoint

Export = Callable[..., Path]


def overflowing(factor: float = 2.0**20) -> Checkpoint:
    """The same function with larger numbers between the two convolutions of a block."""
    checkpoint = balanced_checkpoint()
    state = dict(checkpoint.state)
    for name, by in (("1.weight", factor), ("1.bias", factor), ("3.weight", 1 / factor)):
        key = f"up2.conv.double_conv.{name}"
        state[key] = state[key] * by
    return replace(checkpoint, state=state)


@pytest.fixture(scope="module")
def large(
    exported: Export, reweighted: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All weights are within fp16: activations alone exceed it."""
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    layer = "net.up2.conv.double_conv"
    reweighted(exported("fp16"), path, f"{layer}.0.weight", lambda w: w * np.float16(2**15))
    return reweighted(path, path, f"{layer}.3.weight", lambda w: w * np.float16(2**6))


def overflows(model: Path, checkpoint: Checkpoint) -> bool:
    with OverflowProbe(model, checkpoint.spec) as probe:
        return bool((probe.run(steel(0, 48, 64), (48, 64)) == NO_CLASS).all())


def test_activations(large: Path, exported: Export) -> None:
    checkpoint = balanced_checkpoint()
    assert overflows(large, checkpoint)
    assert not overflows(exported("fp16"), checkpoint)
    assert not overflows(exported(), checkpoint)


def test_weights(exported: Export, reweighted: Callable[..., Path], tmp_path: Path) -> None:
    infinite = reweighted(
        exported("fp16"), tmp_path / "w.onnx", "net.outc.conv.weight", lambda w: w * np.inf
    )
    assert overflows(infinite, balanced_checkpoint())


def test_blocks_in_fp32_may_exceed_it(tmp_path: Path) -> None:
    checkpoint = overflowing()
    onnx_from_checkpoint(checkpoint, tmp_path / "m.onnx", "fp16", "", ("up2",))
    assert not overflows(tmp_path / "m.onnx", checkpoint)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_an_onnx_file_that_overflows_fails(large: Path, tmp_path: Path, backend: str) -> None:
    """Its masks on the CPU are right, and equal to its own in every pixel."""
    if backend == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    gate = GateOptions(min_agreement=0.0)
    options = BuildOptions(backend=backend, precision="fp16", gate=gate)
    with pytest.raises(GateError, match="4 images whose output is not finite") as caught:
        build_engine(large, tmp_path / "engine", options)
    assert "the ONNX file's own graph" in str(caught.value.expected)


def test_a_checkpoint_in_onnx_runtime_is_repaired(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.pth", overflowing())
    gate = GateOptions(min_agreement=0.9)
    options = BuildOptions(backend="onnxruntime", precision="fp16", gate=gate, fp32_blocks=())
    with pytest.raises(GateError, match="not finite"):
        build_engine(tmp_path / "c.pth", tmp_path / "engine", options)
    repaired = replace(options, fp32_blocks=None)
    built = build_engine(tmp_path / "c.pth", tmp_path / "engine", repaired)
    assert built.manifest.precisions["fp32_blocks"] == ["up2"]
