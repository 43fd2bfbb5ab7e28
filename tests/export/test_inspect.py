from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.engine.manifest import MANIFEST, read_manifest
from unetrt.engine.tensorrt_backend import cuda_devices
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import read_checkpoint, unet_from_checkpoint, write_bare

ENDS = (
    {
        "image": {"dtype": "uint8", "shape": ["N", "h", "w", 1]},
        "size_like": {"dtype": "uint8", "shape": ["H", "W"]},
    },
    {"mask": {"dtype": "uint8", "shape": ["N", "H", "W"]}},
)


def test_a_checkpoint(checkpoint_file: Callable[..., Path]) -> None:
    found = describe_model(checkpoint_file())
    assert found["kind"] == "checkpoint"
    assert found["spec"] == asdict(read_checkpoint(checkpoint_file()).spec)
    assert found["sha256"] == sha256_from_file(checkpoint_file())
    net = unet_from_checkpoint(read_checkpoint(checkpoint_file()))
    assert found["parameters"] == sum(p.numel() for p in net.parameters()), "as train counts them"
    json.dumps(found)


def test_a_bare_checkpoint(checkpoint_file: Callable[..., Path], tmp_path: Path) -> None:
    write_bare(tmp_path / "bare.pth", read_checkpoint(checkpoint_file()))
    found = describe_model(tmp_path / "bare.pth")
    assert found["kind"] == "checkpoint of Pytorch-UNet"
    assert found["spec"]["scale"] == 0.5


def test_an_onnx_file(exported: Callable[..., Path]) -> None:
    found = describe_model(exported())
    assert (found["kind"], found["precision"]) == ("onnx", "fp32")
    assert (found["inputs"], found["outputs"]) == ENDS
    json.dumps(found)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "TEXT.ONNX").write_text("text")
    with pytest.raises(UserError, match="not an ONNX file"):
        describe_model(tmp_path / "TEXT.ONNX")
    for path in (tmp_path, tmp_path / "text.onnx", tmp_path / "none.pth"):
        with pytest.raises(UserError):
            describe_model(path)


def test_memory_of_an_engine(exported: Callable[..., Path], tmp_path: Path) -> None:
    gate = GateOptions(min_agreement=0.0)
    options = BuildOptions(backend="onnxruntime", precision="fp32", gate=gate)
    build_engine(exported(), tmp_path / "engine", options)
    found = describe_model(tmp_path / "engine")
    assert (found["inputs"], found["outputs"]) == ENDS
    memory = found["memory"]
    assert memory["unit"] == "bytes"
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
    found = describe_model(tmp_path / "engine")
    assert found["precisions"]["flops"] == {"fp16": 1.0}
    assert found["precisions"]["from"] == "from the network before the build"
    assert (found["inputs"], found["outputs"]) == ENDS
    memory = found["memory"]
    assert memory["features_of"] == {"image": [4, 64, 96, 1], "size_like": [64, 96]}
    assert memory["device_per_slot"].startswith("only the engine itself can tell")
    assert memory["model_file"] == (tmp_path / "engine" / "model.plan").stat().st_size


def test_a_plan_of_one_shape_says_it(exported: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    if cuda_devices():
        pytest.skip("a machine with a GPU opens the plan")
    plan = PlanOptions(batch=(2, 2, 2), sizes=((64, 80), (64, 96)))
    options = BuildOptions(backend="tensorrt-rtx", plan=plan, gate=GateOptions(force=True))
    build_engine(exported("fp16"), tmp_path / "engine", options)
    found = describe_model(tmp_path / "engine")
    assert found["inputs"]["image"]["shape"] == [2, 64, "w", 1]
    assert found["inputs"]["size_like"]["shape"] == [64, "W"]
    assert found["outputs"]["mask"]["shape"] == [2, 64, "W"]


def test_an_engine_that_openvino_computes_in_bf16(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    """Its graph is in fp32, and no share of it says otherwise."""
    options = BuildOptions(backend="onnxruntime", precision="fp32")
    build_engine(exported(), tmp_path / "engine", options)
    manifest = replace(read_manifest(tmp_path / "engine"), backend="openvino", precision="bf16")
    (tmp_path / "engine" / MANIFEST).write_text(replace(manifest, precisions={}).to_json())
    precisions = describe_model(tmp_path / "engine")["precisions"]
    assert precisions == {"from": "computed in bf16 by OpenVINO's hint, the graph is fp32"}
