"""export, build, inspect, convert and doctor: from a checkpoint to what is deployed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import CheckpointFile, Command
from tests.engine.test_probe import break_package
from unetrt.contract import modules
from unetrt.contract.masks import read_mask
from unetrt.contract.modules import is_installed
from unetrt.engine import probe
from unetrt.engine.probe import PROBES
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.unet import UNet


def test_export_says_what_it_wrote(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    path = tmp_path / "two.onnx"
    outcome = unetrt("export", checkpoint_file(classes=2), "-o", path, "--scale", "0.5")
    assert outcome.status == 0
    assert outcome.out.startswith(f"{path}: ")
    assert "2 classes, scale 0.5" in outcome.out
    assert json.loads(unetrt("inspect", path, "--json").out)["spec"]["scale"] == 0.5


def test_inspect_says_none_of_what_is_not_there(
    unetrt: Command, checkpoint_file: CheckpointFile
) -> None:
    outcome = unetrt("inspect", checkpoint_file())
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert "resume: none" in lines
    assert "  ignore_index: none" in lines
    assert "  palette: none" in lines
    net = UNet(1, 4, 4)
    assert f"parameters: {sum(p.numel() for p in net.parameters())}" in lines


@pytest.mark.parametrize(
    ("output", "said", "hint"),
    [("x.bin", "ends in .onnx", "-o {}/x.bin.onnx"), ("no/x.onnx", "no folder", "mkdir -p {}/no")],
)
def test_export_refuses_a_place_it_cannot_write(
    output: str,
    said: str,
    hint: str,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    tmp_path: Path,
) -> None:
    outcome = unetrt("export", checkpoint_file(), "-o", tmp_path / output)
    assert said in outcome.error
    assert f"Hint: {hint.format(tmp_path)}" in outcome.whole_error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_a_folder_is_no_file_to_write(
    verb: str,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = checkpoint_file()
    monkeypatch.chdir(tmp_path)
    for place in (".", "..", str(tmp_path)):
        text = unetrt(verb, checkpoint, "-o", place).whole_error
        assert f"{place} is a folder" in text
        assert Path(text.split("Hint: -o ")[1].strip()).parent.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_build_judges_and_says_so(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "engine"
    outcome = unetrt(
        "build", onnx_file, "-o", folder, "--backend", "onnxruntime", "--gate-images", pictures
    )
    assert outcome.status == 0
    assert f"{folder}: onnxruntime " in outcome.out
    assert "the gate has passed" in outcome.out
    assert "judged on 4 images (images)" in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine", "my pictures ü"]


def test_build_refuses_what_it_cannot_do(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    build = ("build", onnx_file, "-o", tmp_path / "engine")
    for arguments, said in (
        (("--gate-masks", pictures), "goes with --gate-images"),
        (("--gate-images", tmp_path / "none"), "no folder of images"),
        (("--backend", "onnxruntime", "--precision", "bf16"), "not built in bf16"),
        (("--backend", "onnxruntime", "--precision", "fp16"), "a graph in fp32"),
        (("--backend", "onnxruntime", "--scale", "0.25"), "another scale"),
        (("--max-iou-drop", "0"), "measured against the truth"),
    ):
        assert said in unetrt(*build, *arguments).error
    assert "holds other files" in unetrt("build", onnx_file, "-o", pictures).error
    file = pictures / "a.png"
    assert "Traceback" not in unetrt("build", onnx_file, "-o", file / "engine").error
    assert not (tmp_path / "engine").exists()


def test_inspect_describes_every_kind(
    unetrt: Command, checkpoint_file: CheckpointFile, onnx_file: Path, engine_folder: Path
) -> None:
    for model, kind in (
        (checkpoint_file(), "checkpoint"),
        (onnx_file, "onnx"),
        (engine_folder, "engine"),
    ):
        text = unetrt("inspect", model)
        assert text.status == 0
        assert f"kind: {kind}\n" in text.out
        assert "  classes: 4\n" in text.out
        told = json.loads(unetrt("inspect", model, "--json").out)
        assert told["kind"] == kind
        assert told["spec"]["classes"] == 4
    assert told["files_verified"] is True
    assert told["gate"]["verdict"] == "passed"


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "gate.json"])
def test_a_file_that_was_changed_is_found_and_nothing_runs(
    name: str, unetrt: Command, engine_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engine_folder, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert f"{name} has SHA-256" in unetrt("inspect", folder).whole_error
    out = tmp_path / "out"
    assert name in unetrt("predict", "-m", folder, "-i", pictures, "--output-dir", out).error
    assert not out.exists()
    (folder / name).unlink()
    assert f"{name} is missing" in unetrt("inspect", folder).error


def test_inspect_of_a_folder_that_is_no_engine(unetrt: Command, pictures: Path) -> None:
    assert "is not an engine directory" in unetrt("inspect", pictures).error


@pytest.mark.parametrize("channels", [1, 3])
def test_convert_writes_the_bare_form_with_the_same_masks(
    channels: int, unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    model, bare = checkpoint_file(channels=channels, classes=2), tmp_path / "bare.pth"
    outcome = unetrt("convert", model, "-o", bare)
    assert outcome.status == 0
    assert "--classes 2 --scale 1.0" in outcome.out
    assert "3 channels and width 64" in outcome.err
    assert "pil-bicubic" in outcome.err
    state = torch.load(bare, weights_only=True)
    assert state.pop("mask_values") == [0, 1]
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["outc.conv.bias"].shape == (2,)
    for path, name in ((model, "ours"), (bare, "bare")):
        asked = ("predict", "-m", path, "-i", pictures, "--output-dir", tmp_path / name)
        assert unetrt(*asked, "--scale", "1").status == 0
    for path in (tmp_path / "ours").rglob("*.png"):
        other = tmp_path / "bare" / path.relative_to(tmp_path / "ours")
        np.testing.assert_array_equal(read_mask(path), read_mask(other))
    assert "checkpoint of Pytorch-UNet" in unetrt("inspect", bare).out


def test_convert_replaces_nothing_but_what_it_has_written(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    own, photo = tmp_path / "best.pth", tmp_path / "photo.png"
    own.write_bytes(checkpoint_file().read_bytes())
    photo.write_bytes(b"a photo")
    wrapped = tmp_path / "training.pth"
    torch.save({"state_dict": torch.load(own, weights_only=True)["model"], "epoch": 3}, wrapped)
    theirs = tmp_path / "MODEL.pth"  # of Pytorch-UNet, with its own training behind it
    torch.save({**UNet(3, 2, 2).state_dict(), "mask_values": [0, 1]}, theirs)
    for path in (own, photo, wrapped, theirs):
        before = path.read_bytes()
        assert "would replace" in unetrt("convert", own, "-o", path).error
        assert path.read_bytes() == before
    for _ in range(2):
        assert unetrt("convert", own, "-o", tmp_path / "bare.pth").status == 0


def test_convert_says_that_the_bit_depth_is_lost(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """predict.py divides by 255, whatever the bits."""
    ours = read_checkpoint(checkpoint_file())
    ours.spec = replace(ours.spec, bit_depth=12)
    write_checkpoint(tmp_path / "deep.pth", ours)
    outcome = unetrt("convert", tmp_path / "deep.pth", "-o", tmp_path / "bare.pth")
    assert outcome.status == 0
    assert "learnt from 12 bits" in outcome.err


def test_convert_needs_a_folder_to_write_to(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    outcome = unetrt("convert", checkpoint_file(), "-o", tmp_path / "no" / "x.pth")
    assert "no folder" in outcome.whole_error


def test_doctor_names_every_backend_and_what_build_takes(unetrt: Command) -> None:
    outcome = unetrt("doctor")
    assert outcome.status == 0
    for name in PROBES:
        assert f"\n{name} " in outcome.out
    assert "unetrt build takes " in outcome.out
    assert "processor" in outcome.out


def test_doctor_says_what_each_is_for(unetrt: Command) -> None:
    from unetrt.engine.probe import USES

    assert list(USES) == list(PROBES)
    told = unetrt("doctor").out
    for what in (*USES.values(), "s3://…", "gs://…", "az://…"):
        assert what in told
    for store in ("s3fs", "gcsfs", "adlfs"):
        assert is_installed(store) or modules.INSTALL[store] in told


@pytest.mark.parametrize("package", ["torch", "onnxruntime"])
def test_doctor_outlives_a_package_that_raises(
    unetrt: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    code = "raise RuntimeError('libcudnn.so.9: cannot open shared object file')"
    break_package(monkeypatch, tmp_path, package, code)
    outcome = unetrt("doctor")
    assert outcome.status == 0
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(f"{package} "))
    assert line.split()[1:3] == ["no", "no"]
    assert "libcudnn.so.9: cannot open" in line
    assert f" {modules.INSTALL[package]}\n" in outcome.out


def test_doctor_is_content_where_torch_alone_runs(
    unetrt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEALTHCHECK of the images takes its status."""
    monkeypatch.setattr(probe, "PROBES", {"torch": PROBES["torch"]})
    outcome = unetrt("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    assert "unetrt runs checkpoints by torch here" in outcome.out
    assert modules.INSTALL["openvino"] in outcome.out


def test_doctor_reports_also_where_nothing_runs(
    unetrt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = probe.BackendStatus("openvino", False, False, "not installed", "pip install openvino")
    monkeypatch.setattr(probe, "PROBES", {"openvino": lambda: nothing})
    outcome = unetrt("doctor")
    assert "no backend runs here" in outcome.error
    assert "not installed" in outcome.out
    assert "pip install openvino" in outcome.out
