from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.engine.tensorrt_backend import cuda_devices
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import read_checkpoint, write_bare


def test_a_checkpoint(checkpoint_file: Callable[..., Path]) -> None:
    found = describe_model(checkpoint_file())
    assert found["kind"] == "checkpoint"
    assert found["spec"] == asdict(read_checkpoint(checkpoint_file()).spec)
    assert found["sha256"] == sha256_from_file(checkpoint_file())
    json.dumps(found)


def test_a_bare_checkpoint(checkpoint_file: Callable[..., Path], tmp_path: Path) -> None:
    write_bare(tmp_path / "bare.pth", read_checkpoint(checkpoint_file()))
    found = describe_model(tmp_path / "bare.pth")
    assert found["kind"] == "checkpoint of Pytorch-UNet"
    assert found["spec"]["scale"] == 0.5


def test_an_onnx_file(exported: Callable[..., Path]) -> None:
    found = describe_model(exported())
    assert (found["kind"], found["precision"]) == ("onnx", "fp32")
    assert found["inputs"] == {"image": ["N", "h", "w", 1], "size_like": ["H", "W"]}
    assert found["outputs"] == {"mask": ["N", "H", "W"]}
    json.dumps(found)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    for path in (tmp_path, tmp_path / "text.onnx", tmp_path / "none.pth"):
        with pytest.raises(UserError):
            describe_model(path)


def test_memory_of_an_engine(exported: Callable[..., Path], tmp_path: Path) -> None:
    gate = GateOptions(min_agreement=0.0)
    options = BuildOptions(backend="onnxruntime", precision="fp32", gate=gate)
    build_engine(exported(), tmp_path / "engine", options)
    memory = describe_model(tmp_path / "engine")["memory"]
    assert memory["model_file"] == exported().stat().st_size
    assert 0.9 < memory["weights"] / memory["model_file"] < 1
    assert memory["features_of"] == {"image": [1, 256, 320, 1], "size_like": [256, 320]}
    assert memory["features_estimated"] > 2 * 4 * 256 * 320 * 4
    assert "device_per_slot" not in memory


def test_memory_of_a_plan(exported: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    if cuda_devices():
        pytest.skip("a machine with a GPU opens the plan")
    plan = PlanOptions(batch=(1, 2, 4), sizes=((64, 80), (48, 96)))
    options = BuildOptions(backend="tensorrt-rtx", plan=plan, gate=GateOptions(force=True))
    build_engine(exported("fp16"), tmp_path / "engine", options)
    memory = describe_model(tmp_path / "engine")["memory"]
    assert memory["features_of"] == {"image": [4, 64, 96, 1], "size_like": [64, 96]}
    assert memory["device_per_slot"].startswith("only the engine itself can tell")
    assert memory["model_file"] == (tmp_path / "engine" / "model.plan").stat().st_size
