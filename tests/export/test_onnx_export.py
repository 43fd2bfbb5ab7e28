"""What is in an exported file, and what becomes of an export that fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.contract.types import NO_CLASS, U8
from unetrt.engine.onnxfile import PRECISION_KEY, SOURCE_KEY, SPEC_KEY, metadata_from_onnx
from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import OpenVinoEngine, supports_bf16
from unetrt.export import onnx_export
from unetrt.export.onnx_export import _finite, export_checkpoint, onnx_from_checkpoint
from unetrt.training.checkpoint import read_checkpoint

Export = Callable[..., Path]
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


@pytest.fixture(autouse=True)
def real_exporter(exporter: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests of this run have exported does not count here."""
    monkeypatch.setattr(onnx_export, "_export", exporter)


@pytest.fixture(params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(exported: Export, precision: str) -> Any:
    return onnx.load(str(exported(precision)))


class TestFile:
    def test_inputs_and_outputs(self, model: Any) -> None:
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {
            "image": ["N", "h", "w", 1],
            "size_like": ["H", "W"],
            "mask": ["N", "H", "W"],
        }
        kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        assert kinds == {onnx.TensorProto.UINT8}

    def test_no_branches_and_opset_20(self, model: Any) -> None:
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"If", "Loop", "Scan", "BatchNormalization"}
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20

    def test_weights_are_inside(self, model: Any, exported: Export, precision: str) -> None:
        tensors = model.graph.initializer
        assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors)
        assert not list(exported(precision).parent.glob("*.data"))

    def test_metadata(self, model: Any, precision: str, checkpoint_file: Export) -> None:
        found = {p.key: p.value for p in model.metadata_props}
        spec = read_checkpoint(checkpoint_file()).spec
        assert ModelSpec.from_json(found[SPEC_KEY]) == spec
        assert (found[PRECISION_KEY], found[SOURCE_KEY]) == (precision, "")
        assert model.producer_name == "unetrt"

    def test_nothing_of_this_machine_is_in_it(self, exported: Export, precision: str) -> None:
        data = exported(precision).read_bytes()
        folders = ["site-packages", ".py", 'File "', "stack_trace"]
        folders += [str(Path.home()) + os.sep, str(Path(__file__).parents[2]), torch.__path__[0]]
        for text in folders:
            assert text.encode() not in data, text

    def test_it_is_checked_by_onnx(self, model: Any) -> None:
        onnx.checker.check_model(model, full_check=True)


def test_fp16_weights_take_half_the_room(exported: Export) -> None:
    small, large = exported("fp16"), exported()
    kinds = {t.data_type for t in onnx.load(str(small)).graph.initializer}
    assert kinds & FLOATS == {onnx.TensorProto.FLOAT16}
    kinds = {t.data_type for t in onnx.load(str(large)).graph.initializer}
    assert kinds & FLOATS == {onnx.TensorProto.FLOAT}
    assert 0.45 < small.stat().st_size / large.stat().st_size < 0.6


class TestNotFinite:
    """What the network cannot say is NO_CLASS everywhere, never a mask."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino-fp32", "openvino-bf16"])
    def test_weights(
        self,
        exported: Export,
        reweighted: Callable[..., Path],
        steel: Callable[..., U8],
        tmp_path: Path,
        value: float,
        backend: str,
    ) -> None:
        def poison(array: Any) -> Any:
            array = array.copy()
            array[1] = value
            return array

        path = reweighted(exported(), tmp_path / "bad.onnx", "net.outc.conv.bias", poison)
        name, _, precision = backend.partition("-")
        if precision == "bf16" and not supports_bf16():
            pytest.skip("this processor has no bfloat16")
        if precision:
            engine: Any = OpenVinoEngine(path, metadata_from_onnx(path)[0], precision)
        else:
            engine = open_engine(path, name)
        with engine:
            assert (engine.run(steel(0, 40, 50), (80, 99)) == NO_CLASS).all()

    @pytest.mark.slow
    def test_weights_beyond_fp16(
        self,
        checkpoint_file: Export,
        steel: Callable[..., U8],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        checkpoint = read_checkpoint(checkpoint_file())
        checkpoint.state["outc.conv.weight"] = checkpoint.state["outc.conv.weight"] * 1e6
        with caplog.at_level(logging.WARNING, "unetrt"):
            onnx_from_checkpoint(checkpoint, tmp_path / "fp16.onnx", "fp16")
        assert "overflows" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, "unetrt"):
            onnx_from_checkpoint(checkpoint, tmp_path / "fp32.onnx", "fp32")
        assert not caplog.records
        for backend in ("onnxruntime", "openvino"):
            with open_engine(tmp_path / "fp16.onnx", backend) as engine:
                assert (engine.run(steel(0, 40, 50), (40, 50)) == NO_CLASS).all()
            with open_engine(tmp_path / "fp32.onnx", backend) as engine:
                assert (engine.run(steel(0, 40, 50), (40, 50)) != NO_CLASS).all()


class TestWhatOverflows:
    SPEC = ModelSpec(channels=1, classes=3, result="prob")

    def test_a_probability_of_one_does_not(self) -> None:
        found = np.array([[[[255, 0]], [[0, 255]], [[0, 255]]]], np.uint8)
        assert _finite(found, self.SPEC).all()

    def test_a_pixel_that_is_of_every_class_does(self) -> None:
        found = np.array([[[[255, 0]], [[255, 255]], [[255, 0]]]], np.uint8)
        assert _finite(found, self.SPEC)[0, :, 0].tolist() == [[False, True]] * 3

    def test_a_mask(self) -> None:
        found = np.array([[[255, 0]]], np.uint8)
        assert _finite(found, ModelSpec(classes=3)).tolist() == [[[False, True]]]


class TestFailures:
    def test_a_graph_with_other_masks_is_not_written(
        self,
        checkpoint_file: Export,
        exported: Export,
        reweighted: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        sound = exported()

        def export_negated(_: object, path: Path, opset: int) -> None:
            del opset
            reweighted(sound, path, "net.outc.conv.weight", np.negative)

        monkeypatch.setattr(onnx_export, "_export", export_negated)
        target = tmp_path / "model.onnx"
        target.write_bytes(b"an older file")
        with pytest.raises(UserError, match="does not give the network's masks"):
            onnx_from_checkpoint(read_checkpoint(checkpoint_file()), target)
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == b"an older file"

    @pytest.mark.parametrize("chained", ["cause", "context"])
    def test_an_interrupt_stays_one(
        self,
        checkpoint_file: Export,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        chained: str,
    ) -> None:
        """The exporter catches it and raises an error of its own, one or more levels above."""

        def fail(*_: object, **__: object) -> None:
            try:
                try:
                    raise KeyboardInterrupt
                except KeyboardInterrupt as error:
                    raise AttributeError("no attribute 'exc'") from (
                        error if chained == "cause" else None
                    )
            except AttributeError as error:
                raise RuntimeError("failed to export") from error

        monkeypatch.setattr(torch.onnx, "export", fail)
        with pytest.raises(KeyboardInterrupt):
            onnx_from_checkpoint(read_checkpoint(checkpoint_file()), tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_another_failure_of_the_exporter_is_no_interrupt(
        self, checkpoint_file: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("failed to export")

        monkeypatch.setattr(torch.onnx, "export", fail)
        with pytest.raises(RuntimeError, match="failed to export"):
            onnx_from_checkpoint(read_checkpoint(checkpoint_file()), tmp_path / "model.onnx")

    def test_a_wrong_name(self, checkpoint_file: Export, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"ends in \.onnx"):
            export_checkpoint(checkpoint_file(), tmp_path / "model.pth", "fp32", SpecOverrides())

    def test_a_folder_of_that_name(self, checkpoint_file: Export, tmp_path: Path) -> None:
        (tmp_path / "net.onnx").mkdir()
        with pytest.raises(UserError, match=r"net\.onnx is a folder"):
            export_checkpoint(checkpoint_file(), tmp_path / "net.onnx", "fp32", SpecOverrides())

    def test_a_folder_that_is_not_there(self, checkpoint_file: Export, tmp_path: Path) -> None:
        target = tmp_path / "none" / "model.onnx"
        with pytest.raises(UserError, match="no folder"):
            export_checkpoint(checkpoint_file(), target, "fp32", SpecOverrides())

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such file"):
            export_checkpoint(tmp_path / "no.pth", tmp_path / "a.onnx", "fp32", SpecOverrides())
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_overrides_travel_in_the_file(checkpoint_file: Export, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    spec = export_checkpoint(checkpoint_file(), target, "fp32", SpecOverrides(scale=0.25))
    found, _, source = metadata_from_onnx(target)
    assert spec == found
    assert found.scale == 0.25
    assert len(source) == 64
