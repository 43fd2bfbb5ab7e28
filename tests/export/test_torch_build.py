"""Engine directories of PyTorch, here on a CPU: built, judged, opened, given new weights."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import balanced_checkpoint, steel
from tests.export.test_repair import scaled
from unetrt.contract.errors import GateError, UserError
from unetrt.contract.spec import SpecOverrides
from unetrt.engine import probe
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.engine.probe import BackendStatus
from unetrt.engine.torch_backend import FusedEngine
from unetrt.export.build import BuildOptions, Built, _choose, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.refit import refit_engine
from unetrt.export.source import read_source
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.export.triton import TritonOptions, write_repository
from unetrt.training.checkpoint import write_checkpoint

Files = Callable[..., Path]
LOOSE = GateOptions(min_agreement=0.98)
"""An untrained network has thin margins."""

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has those of a GPU")


def build(model: Path, directory: Path, **changes: object) -> Built:
    options = {"backend": "torch", "gate": LOOSE, **changes}
    return build_engine(model, directory, BuildOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Files) -> Path:
    path = tmp_path_factory.mktemp("torch") / "engine"
    built = build(checkpoint_file(), path)
    assert built.gate.verdict == "passed"
    assert built.gate.ran_on == "torch fp16 on cpu"
    assert built.why == "as asked"
    return path


def share_equal(engine: Engine, other: Engine) -> float:
    pictures = [steel(i, 40 + 7 * i, 61) for i in range(5)]
    pairs = [(engine.run(p, (90, 70)), other.run(p, (90, 70))) for p in pictures]
    return float(np.mean([np.mean(a == b) for a, b in pairs]))


def test_it_opens_in_pytorch_and_says_that_a_cpu_is_slow(
    directory: Path, checkpoint_file: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "unetrt"),
        open_engine(directory) as engine,
        open_engine(checkpoint_file(), device="cpu") as reference,
    ):
        assert isinstance(engine, FusedEngine)
        assert (engine.label, engine.batch, engine.graphs) == ("torch fp16 on cpu", 1, None)
        assert share_equal(engine, reference) > 0.99
    (record,) = caplog.records
    assert str(directory) in record.getMessage()
    assert "unetrt build CHECKPOINT -o OTHER_DIR" in record.getMessage()


def test_inspect_tells_of_all_layers_in_fp16(directory: Path) -> None:
    told = describe_model(directory)
    assert (told["backend"], told["precision"]) == ("torch", "fp16")
    assert told["precisions"]["flops"] == {"fp16": 1.0}
    assert told["memory"]["weights"] > 0


def test_the_same_request_builds_nothing(directory: Path, checkpoint_file: Files) -> None:
    assert build(checkpoint_file(), directory).reused


def test_an_fp16_graph_is_taken_as_it_is(exported: Files, tmp_path: Path) -> None:
    built = build(exported("fp16"), tmp_path / "engine")
    assert built.manifest.precision == "fp16"
    assert built.gate.reference == "the ONNX file's own graph"


def test_probabilities(checkpoint_file: Files, tmp_path: Path) -> None:
    built = build(checkpoint_file(), tmp_path / "engine", overrides=SpecOverrides(result="prob"))
    assert built.gate.verdict == "passed"
    assert built.gate.level_error is not None


def test_blocks_that_overflow_stay_in_fp32(checkpoint_file: Files, tmp_path: Path) -> None:
    large = scaled(balanced_checkpoint(), "up2.conv", 2.0**20)
    write_checkpoint(tmp_path / "large.pth", large)
    with pytest.raises(GateError, match="not finite"):
        build(tmp_path / "large.pth", tmp_path / "plain", fp32_blocks=())
    built = build(tmp_path / "large.pth", tmp_path / "engine")
    assert built.gate.verdict == "passed"
    assert built.manifest.precisions["fp32_blocks"] == ["up2"]
    assert 0 < built.manifest.precisions["flops"]["fp32"] < 0.5


class TestChoice:
    """Of a machine with a GPU and no TensorRT, said by stand-ins for what was found."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [
            BackendStatus("tensorrt", False, False, "not installed"),
            BackendStatus("torch", True, True, "2.13, CUDA"),
            BackendStatus("openvino", True, True, "2026.4, CPU"),
            BackendStatus("onnxruntime", True, True, "1.31, CPU provider"),
        ]
        monkeypatch.setattr(probe, "probe_backends", lambda: found)

    def chosen(self, model: Path, precision: str) -> tuple[str, str, str]:
        options = BuildOptions(precision=precision)
        return _choose(options, read_source(model))

    @pytest.mark.parametrize(
        ("precision", "backend", "takes"),
        [
            ("auto", "torch", "fp16"),
            ("fp16", "torch", "fp16"),
            ("fp32", "openvino", "fp32"),
            ("bf16", "openvino", "bf16"),
            ("int8", "openvino", "int8"),
        ],
    )
    def test_a_checkpoint(
        self, checkpoint_file: Files, precision: str, backend: str, takes: str
    ) -> None:
        found = self.chosen(checkpoint_file(), precision)
        assert found[:2] == (backend, takes)
        passed_over = f"not torch: it is not built in {precision}"
        assert (passed_over in found[2]) == (backend != "torch")

    def test_a_graph_goes_where_its_precision_is_built(self, exported: Files) -> None:
        assert self.chosen(exported("fp16"), "auto")[:2] == ("torch", "fp16")
        backend, precision, why = self.chosen(exported(), "auto")
        assert (backend, precision in ("bf16", "fp32")) == ("openvino", True)
        assert "not torch: it is not built in fp32" in why

    def test_a_precision_of_nobody(self, checkpoint_file: Files) -> None:
        with pytest.raises(UserError, match="no backend runs here") as caught:
            self.chosen(checkpoint_file(), "int4")
        assert "not torch: it is not built in int4" in str(caught.value.seen)


def test_hints_name_what_there_is(exported: Files, checkpoint_file: Files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch is not built in fp32") as caught:
        build(checkpoint_file(), tmp_path / "engine", precision="fp32")
    assert caught.value.hint == "--backend onnxruntime --precision fp32"
    with pytest.raises(UserError, match="is a graph in fp32") as caught:
        build(exported(), tmp_path / "engine", precision="fp16")
    assert "--backend onnxruntime --precision fp32   takes its graph" in str(caught.value.hint)
    with pytest.raises(UserError, match="is an ONNX file") as caught:
        open_engine(exported(), "torch")
    assert "unetrt build CHECKPOINT -o" in str(caught.value.hint)
    with pytest.raises(GateError) as refused:
        build(checkpoint_file(), tmp_path / "engine", gate=GateOptions(min_agreement=1.1))
    assert "--backend onnxruntime --precision fp32, or --min" in str(refused.value.hint)


def test_new_weights(directory: Path, tmp_path: Path) -> None:
    other = balanced_checkpoint()
    for value in other.state.values():
        if value.is_floating_point() and value.ndim == 4:
            value.mul_(1.01)
    write_checkpoint(tmp_path / "other.pth", other)
    engine = shutil.copytree(directory, tmp_path / "engine")
    _, gate = refit_engine(engine, tmp_path / "other.pth", LOOSE)
    assert gate.verdict == "passed"
    with (
        open_engine(engine) as found,
        open_engine(tmp_path / "other.pth", device="cpu") as reference,
    ):
        assert share_equal(found, reference) > 0.99


def test_triton_is_given_none(directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    with pytest.raises(UserError, match="Triton has no backend") as caught:
        write_repository([directory], tmp_path / "models", TritonOptions())
    assert caught.value.seen == "torch"


def test_a_flag_of_plans_is_refused(checkpoint_file: Files, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the torch backend has no --batch"):
        build(checkpoint_file(), tmp_path / "engine", plan=PlanOptions(batch=(1, 2, 2)))
