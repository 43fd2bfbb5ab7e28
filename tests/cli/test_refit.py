"""unetrt refit: other weights in the same engine, judged as a build is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import steel
from unetrt.contract.files import sha256_from_file
from unetrt.contract.spec import SpecOverrides
from unetrt.engine.manifest import MANIFEST, read_golden, read_manifest, signed_json
from unetrt.engine.open import open_engine
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.profiles import range_of_sizes
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_bare, write_checkpoint
from unetrt.training.synthetic import write_dataset

Export = Callable[..., Path]
Command = Callable[..., Any]
KINDS = [("openvino", "fp32"), pytest.param("onnxruntime", "fp16", marks=pytest.mark.slow)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def options(backend: str = "onnxruntime", precision: str = "fp32") -> BuildOptions:
    # An untrained net has thin margins, in fp16 above all.
    gate = GateOptions(min_agreement=0.95 if precision == "fp16" else None)
    return BuildOptions(backend=backend, precision=precision, gate=gate, fp32_blocks=())


def write_changed(path: Path, checkpoint: Checkpoint, factor: float = 1.5) -> Path:
    """The same net with other weights everywhere."""
    torch.manual_seed(1)
    state = {
        name: tensor * (1 + (factor - 1) * torch.rand_like(tensor))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in checkpoint.state.items()
    }
    golden = [(steel(i, 48, 64), (48, 64)) for i in range(4)]
    write_checkpoint(path, replace(checkpoint, state=state, golden=golden))
    return path


@pytest.fixture
def other(checkpoint_file: Export, tmp_path: Path) -> Path:
    return write_changed(tmp_path / "other.pth", read_checkpoint(checkpoint_file()))


@pytest.fixture(scope="session")
def built(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "engine"
    build_engine(exported(), path, options())
    return path


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "engines" / "engine")


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_it_is_what_a_build_makes(
    unetrt: Command,
    exported: Export,
    other: Path,
    tmp_path: Path,
    backend: str,
    precision: str,
) -> None:
    """The model file byte for byte, the golden masks and the manifest but for its `files`."""
    asked = options(backend, precision)
    refitted, built = tmp_path / "engines" / "refitted", tmp_path / "built"
    build_engine(exported(precision), refitted, asked)
    before = (refitted / "model.onnx").read_bytes()
    bound = asked.gate.min_agreement
    flags = [] if bound is None else ["--min-agreement", bound]
    outcome = unetrt("refit", refitted, other, *flags)
    assert outcome.status == 0, outcome
    assert "the gate has passed" in outcome.out
    build_engine(other, built, asked)
    assert (refitted / "model.onnx").read_bytes() != before
    assert (refitted / "model.onnx").read_bytes() == (built / "model.onnx").read_bytes()
    for ours, theirs in zip(
        read_golden(refitted / "golden.npz"), read_golden(built / "golden.npz"), strict=True
    ):
        assert np.array_equal(ours.mask, theirs.mask)
    mine, fresh = read_manifest(refitted), read_manifest(built)
    assert replace(mine, files={}) == replace(fresh, files={})
    assert mine.source == {"name": "other.pth", "sha256": sha256_from_file(other)}
    assert [p.name for p in refitted.parent.iterdir()] == ["refitted"]
    open_engine(refitted).close()
    assert build_engine(other, refitted, asked).reused


class TestRefused:
    """Each leaves the directory as it was."""

    @pytest.fixture(autouse=True)
    def _untouched(self, engine: Path) -> Any:
        before = snapshot(engine.parent)
        yield
        assert snapshot(engine.parent) == before

    def test_a_failed_gate(self, unetrt: Command, engine: Path, other: Path) -> None:
        model = read_checkpoint(other)
        model.state["inc.double_conv.0.weight"] *= 1e30
        model.state["inc.double_conv.1.weight"] *= 1e30
        write_checkpoint(other, model)
        outcome = unetrt("refit", engine, other)
        assert outcome.status == 1
        assert "not finite" in outcome.err
        assert "THE GATE HAS FAILED, nothing is published" in outcome.out
        assert "pixels that differ: " in outcome.out
        assert f"unetrt build {other} -o {engine} --backend onnxruntime" in outcome.err

    @pytest.mark.parametrize(
        ("net", "named"),
        [
            ({"width": 2}, ("width 2", "width 4")),
            ({"bilinear": True}, ("bilinear True", "bilinear False")),
            ({"classes": 3}, ("classes 3", "classes 4")),
        ],
    )
    def test_another_net(
        self,
        unetrt: Command,
        engine: Path,
        checkpoint_file: Export,
        net: dict[str, Any],
        named: tuple[str, str],
    ) -> None:
        error = unetrt("refit", engine, checkpoint_file(**net)).whole_error
        assert "another net" in error
        assert all(text in error for text in (*named, "unetrt build"))

    def test_another_scale(self, unetrt: Command, engine: Path, other: Path) -> None:
        changed = read_checkpoint(other).with_overrides(SpecOverrides(scale=0.5))
        write_checkpoint(other, changed)
        assert "scale 0.5" in unetrt("refit", engine, other).whole_error

    def test_what_is_no_checkpoint(
        self, unetrt: Command, engine: Path, onnx_file: Path, tmp_path: Path
    ) -> None:
        assert "not a checkpoint" in unetrt("refit", engine, onnx_file).error
        assert "not a checkpoint" in unetrt("refit", engine, engine).error
        assert unetrt("refit", engine, tmp_path / "none.pth").error

    def test_masks_without_images(
        self, unetrt: Command, engine: Path, other: Path, tmp_path: Path
    ) -> None:
        assert "--gate-images" in unetrt("refit", engine, other, "--gate-masks", tmp_path).error

    def test_an_interrupt(
        self, engine: Path, other: Path, unetrt: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("unetrt.export.publish.judge_engine", interrupt)
        assert unetrt("refit", engine, other).status == 130


def test_force_publishes_the_verdict(unetrt: Command, engine: Path, other: Path) -> None:
    model = read_checkpoint(other)
    model.state["inc.double_conv.0.weight"] *= 1e30
    model.state["inc.double_conv.1.weight"] *= 1e30
    write_checkpoint(other, model)
    outcome = unetrt("refit", engine, other, "--force")
    assert outcome.status == 0
    assert "FAILED" in outcome.out
    assert read_manifest(engine).gate["verdict"] == "failed"


def test_a_bare_checkpoint_takes_what_it_does_not_say(
    unetrt: Command, engine: Path, other: Path, tmp_path: Path
) -> None:
    write_bare(tmp_path / "bare.pth", read_checkpoint(other))
    spec = read_manifest(engine).spec
    assert unetrt("refit", engine, tmp_path / "bare.pth").status == 0
    assert read_manifest(engine).spec == spec


def test_the_gate_looks_at_images_and_masks(
    unetrt: Command, engine: Path, other: Path, tmp_path: Path
) -> None:
    images, masks = write_dataset(tmp_path / "data", 3, (64, 80), seed=3)
    outcome = unetrt("refit", engine, other, "--gate-images", images, "--gate-masks", masks)
    assert outcome.status == 0
    assert "judged on 3 images (images)" in outcome.out
    assert "IoU to the truth" in outcome.out


def test_a_graph_of_other_names(unetrt: Command, engine: Path, other: Path) -> None:
    model = onnx.load(str(engine / "model.onnx"))
    place = next(i for i in model.graph.initializer if i.name == "net.outc.conv.weight")
    place.name = "w"
    for node in model.graph.node:
        node.input[:] = ["w" if name == "net.outc.conv.weight" else name for name in node.input]
    (engine / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((engine / MANIFEST).read_text())
    manifest["files"]["model.onnx"] = sha256_from_file(engine / "model.onnx")
    (engine / MANIFEST).write_text(signed_json(manifest))
    assert "net.outc.conv.weight: missing" in unetrt("refit", engine, other).whole_error


def test_int8_needs_its_ranges_anew(
    unetrt: Command, exported: Export, other: Path, tmp_path: Path
) -> None:
    gate = GateOptions(force=True)
    asked = BuildOptions(backend="onnxruntime", precision="int8", gate=gate)
    build_engine(exported(), tmp_path / "int8", asked)
    error = unetrt("refit", tmp_path / "int8", other).error
    assert f"unetrt build {other} -o {tmp_path / 'int8'}" in error
    assert "--precision int8 --calibration DIR" in error


class TestPlan:
    @pytest.fixture
    def plan(self, exported: Export, tmp_path: Path) -> Path:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        asked = BuildOptions(backend="tensorrt-rtx", gate=GateOptions(force=True), fp32_blocks=())
        build_engine(exported("fp16"), tmp_path / "plan", asked)
        return tmp_path / "plan"

    def test_one_that_was_not_built_for_it(self, unetrt: Command, plan: Path, other: Path) -> None:
        error = unetrt("refit", plan, other).error
        flags = "--fp32-blocks none --size 256x320 --batch 1,4,8 --refittable"
        assert f"--backend tensorrt-rtx --precision fp16 {flags}" in error

    def test_the_rebuild_is_of_the_same_plan(
        self, unetrt: Command, exported: Export, other: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        ranges = (range_of_sizes([(48, 64)]), range_of_sizes([(32, 48), (96, 96)]))
        plan = PlanOptions(batch=(1, 2, 4), ranges=ranges, targets=("sm89", "sm120"))
        gate = GateOptions(force=True)
        asked = BuildOptions(backend="tensorrt-rtx", gate=gate, plan=plan, fp32_blocks=())
        build_engine(exported("fp16"), tmp_path / "plan", asked)
        flags = "--target sm89,sm120 --size 48x64 --size 32x48..96x96 --batch 1,2,4 --refittable"
        assert flags in unetrt("refit", tmp_path / "plan", other).error

    def test_without_a_gpu(
        self, unetrt: Command, plan: Path, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unetrt.export.tensorrt_refit.cuda_devices", lambda: 0)
        manifest = json.loads((plan / MANIFEST).read_text())
        manifest["target"]["refittable"] = True
        (plan / MANIFEST).write_text(signed_json(manifest))
        assert "on an NVIDIA GPU" in unetrt("refit", plan, other).whole_error
