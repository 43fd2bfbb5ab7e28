from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import steel
from unetrt.contract.errors import UserError
from unetrt.contract.spec import SpecOverrides, _say_threshold
from unetrt.contract.types import U8
from unetrt.engine.base import Slot
from unetrt.engine.levels import Difference
from unetrt.engine.manifest import GoldenCase
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.onnxruntime_backend import OnnxRuntimeEngine
from unetrt.engine.open import golden_difference, open_engine
from unetrt.training.checkpoint import read_checkpoint, write_bare

Export = Callable[..., Path]


@pytest.fixture
def bare(checkpoint_file: Export, tmp_path: Path) -> Path:
    """A plain state_dict, which says nothing of scale and threshold."""
    path = tmp_path / "bare.pth"
    write_bare(path, read_checkpoint(checkpoint_file()))
    return path


class TestKinds:
    def test_a_checkpoint_runs_in_pytorch(self, checkpoint_file: Export) -> None:
        with open_engine(checkpoint_file(), device="cpu") as engine:
            assert (engine.backend, engine.precision) == ("torch", "fp32")
            assert "unetrt build" in engine.why

    @pytest.mark.parametrize(
        ("backend", "chosen"),
        [("auto", "onnxruntime"), ("onnxruntime", "onnxruntime"), ("openvino", "openvino")],
    )
    def test_an_onnx_file_runs_in_both_runtimes(
        self, exported: Export, backend: str, chosen: str
    ) -> None:
        with open_engine(exported(), backend) as engine:
            assert (engine.backend, engine.precision) == (chosen, "fp32")
            assert engine.why

    def test_the_name_of_an_onnx_file_in_capitals(self, exported: Export, tmp_path: Path) -> None:
        path = tmp_path / "MODEL.ONNX"
        path.write_bytes(exported().read_bytes())
        with open_engine(path) as engine:
            assert engine.backend == "onnxruntime"

    def test_a_directory_runs_in_its_own_backend(
        self, built_directory: Path, exported: Export, steel: Callable[..., U8]
    ) -> None:
        image = steel(0, 50, 70)
        with open_engine(built_directory) as engine, open_engine(exported()) as graph:
            assert (engine.backend, engine.why) == ("onnxruntime", "the directory's own backend")
            assert np.array_equal(engine.run(image, (50, 70)), graph.run(image, (50, 70)))

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])
    def test_a_checkpoint_runs_in_pytorch_alone(
        self, checkpoint_file: Export, backend: str
    ) -> None:
        with pytest.raises(UserError, match="is a checkpoint") as caught:
            open_engine(checkpoint_file(), backend)
        assert f"--backend {backend}" in str(caught.value.hint)

    @pytest.mark.parametrize("backend", ["torch", "tensorrt", "tensorrt-rtx"])
    def test_an_onnx_file_does_not_run_elsewhere(self, exported: Export, backend: str) -> None:
        with pytest.raises(UserError, match="is an ONNX file") as caught:
            open_engine(exported(), backend)
        assert caught.value.hint is not None

    def test_a_directory_was_built_for_one_backend(self, built_directory: Path) -> None:
        with pytest.raises(UserError, match="another backend") as caught:
            open_engine(built_directory, "openvino")
        assert (caught.value.seen, caught.value.expected) == ("onnxruntime", "openvino")
        assert "--backend openvino" in str(caught.value.hint)

    @pytest.mark.parametrize("device", ["cuda", "potato", "cuda:99"])
    @pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
    def test_a_device_that_is_not_there(
        self, checkpoint_file: Export, exported: Export, backend: str, device: str
    ) -> None:
        if device == "cuda" and backend == "torch":
            import torch

            if torch.cuda.is_available():
                pytest.skip("this machine has a CUDA device")
        model = checkpoint_file() if backend == "torch" else exported()
        with pytest.raises(UserError, match=device):
            open_engine(model, backend, device)


class TestOverrides:
    ASKED = SpecOverrides(scale=0.5, threshold=0.3)

    def test_a_bare_checkpoint_takes_them_in_silence(
        self, bare: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.WARNING, "unetrt"),
            open_engine(bare, device="cpu", overrides=SpecOverrides(scale=0.25)) as engine,
        ):
            assert engine.spec.scale == 0.25
        assert not caplog.records

    def test_a_checkpoint_of_ours_takes_them_with_a_warning(
        self, checkpoint_file: Export, caplog: pytest.LogCaptureFixture
    ) -> None:
        _say_threshold.cache_clear()
        with (
            caplog.at_level(logging.WARNING, "unetrt"),
            open_engine(checkpoint_file(), device="cpu", overrides=self.ASKED) as engine,
        ):
            assert (engine.spec.scale, engine.spec.threshold) == (0.5, 0.5)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 2
        assert "scale 1.0" in messages[0]
        assert "a threshold counts for one logit alone" in messages[1]
        caplog.clear()
        one = checkpoint_file(classes=1)
        with caplog.at_level(logging.WARNING, "unetrt"):
            open_engine(one, device="cpu", overrides=SpecOverrides(threshold=0.3)).close()
        assert "threshold 0.5" in caplog.text

    def test_its_own_values_are_no_news(
        self, checkpoint_file: Export, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = SpecOverrides(scale=1.0, threshold=0.5)
        with caplog.at_level(logging.WARNING, "unetrt"):
            open_engine(checkpoint_file(), device="cpu", overrides=own).close()
        assert not caplog.records

    @pytest.mark.parametrize(
        ("asked", "flag"),
        [
            (SpecOverrides(scale=0.25), "--scale 0.25"),
            (SpecOverrides(mask_values=(0, 9, (1, 2, 3), 255)), "--mask-values 0,9,1:2:3,255"),
        ],
    )
    def test_an_exported_model_refuses_others(
        self, exported: Export, built_directory: Path, asked: SpecOverrides, flag: str
    ) -> None:
        for path in (exported(), built_directory):
            with pytest.raises(UserError, match="made with another") as caught:
                open_engine(path, overrides=asked)
            assert flag.split()[1] in str(caught.value.seen)
            assert flag in str(caught.value.hint)

    def test_a_threshold_counts_where_there_is_one_class(self, exported: Export) -> None:
        asked = SpecOverrides(threshold=0.25)
        open_engine(exported(), overrides=asked).close()
        with pytest.raises(UserError, match="another threshold") as caught:
            open_engine(exported(classes=1), overrides=asked)
        assert "--mask-threshold 0.25" in str(caught.value.hint)

    def test_an_exported_model_takes_its_own(self, exported: Export, built_directory: Path) -> None:
        own = SpecOverrides(scale=1.0, threshold=0.5)
        for path in (exported(), built_directory):
            open_engine(path, overrides=own).close()


class TestBadFiles:
    @pytest.mark.parametrize("name", ["none.pth", "none.onnx", "none"])
    def test_a_file_that_is_not_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UserError, match="no such file") as caught:
            open_engine(tmp_path / name)
        assert caught.value.hint is not None

    @pytest.mark.parametrize("content", [b"just some text, no model\n" * 9, b"\x80\x04\x95", b""])
    @pytest.mark.parametrize("name", ["model.onnx", "model.pth"])
    def test_a_file_that_is_something_else(self, tmp_path: Path, name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            open_engine(path)
        assert caught.value.hint is not None


class OddBatches(OnnxRuntimeEngine):
    """Right in a slot of one; from its third batch on, as a bad CUDA graph would, wrong."""

    graphs = True
    batch = 2

    def slot(self) -> Slot:
        slot = super().slot()
        masks, calls = slot.masks, itertools.count(1)

        def wrong_later() -> U8:
            found = masks()
            return found if next(calls) < 3 else np.zeros_like(found)

        slot.masks = wrong_later  # type: ignore[method-assign]
        return slot


def test_golden_masks_are_replayed_as_a_job_runs(exported: Export) -> None:
    path = exported()
    spec = metadata_from_onnx(path)[0]
    image = steel(3, 32, 32)
    with OnnxRuntimeEngine(path, spec, "fp32", "cpu") as engine:
        case = GoldenCase(image, engine.run(image, (32, 32)))
        assert golden_difference(engine, [case]) == Difference(1.0)
    with OddBatches(path, spec, "fp32", "cpu") as engine:
        assert engine.run(image, (32, 32)).tolist() == case.mask.tolist()
        assert golden_difference(engine, [case]).agreement < 1
