"""Engines of probabilities: built, judged, replayed and used as engines of masks are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import steel
from unetrt.contract.errors import GateError, UserError
from unetrt.contract.modules import is_installed
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.contract.types import NO_CLASS, U8
from unetrt.engine.levels import LevelError, mask_from_result
from unetrt.engine.manifest import GOLDEN, GoldenCase, read_golden, read_manifest
from unetrt.engine.open import open_engine
from unetrt.export import gate
from unetrt.export.build import BuildOptions, Built, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.onnx_export import export_checkpoint
from unetrt.export.triton import TritonOptions, write_repository

PROB = SpecOverrides(result="prob")


def built_prob(model: Path, out: Path, **options: object) -> Built:
    return build_engine(model, out, BuildOptions(overrides=PROB, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine_folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prob") / "engine"
    built_prob(trained, folder, backend="onnxruntime", precision="fp32")
    return folder


def test_an_engine_gives_the_checkpoints_probabilities(engine_folder: Path, trained: Path) -> None:
    image = steel(1, 96, 96)
    with (
        open_engine(engine_folder, overrides=PROB) as engine,
        open_engine(trained, device="cpu", overrides=PROB) as reference,
    ):
        found, expected = (e.run(image, (80, 70)).astype(int) for e in (engine, reference))
    assert found.shape == (4, 80, 70)
    assert np.abs(found - expected).max() <= 1
    assert all(case.mask.ndim == 3 for case in read_golden(engine_folder / GOLDEN))
    assert describe_model(engine_folder)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("openvino", "fp32"), pytest.param("onnxruntime", "fp16", marks=pytest.mark.slow)],
)
def test_every_backend_builds_them(
    backend: str, precision: str, trained: Path, tmp_path: Path
) -> None:
    built = built_prob(trained, tmp_path / "e", backend=backend, precision=precision)
    assert built.manifest.spec.result == "prob"
    assert built.gate.verdict == "passed"
    assert built.gate.level_error is not None
    assert built.gate.level_error < 0.3
    again = built_prob(trained, tmp_path / "e", backend=backend, precision=precision)
    assert again.reused


def test_a_plan_gives_them_too(trained: Path, tmp_path: Path) -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("TensorRT-RTX is not installed here")
    built = built_prob(trained, tmp_path / "e", backend="tensorrt-rtx", precision="fp16")
    assert built.gate.verdict == "graph-only"
    assert read_manifest(tmp_path / "e").spec.planes == 4


def test_probabilities_that_are_off_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks alone would not show it: the order of the classes stays.

    Blocks in fp32, judged as fp32 is, do not mend it: no graph with some is exported in vain.
    """
    for precision in ("fp16", "fp32"):
        monkeypatch.setitem(gate.MAX_LEVEL_ERROR, precision, -1.0)
    with pytest.raises(GateError) as caught:
        built_prob(trained, tmp_path / "e", backend="onnxruntime", precision="fp16")
    assert "levels of 255" in str(caught.value.seen)
    assert not (tmp_path / "e").exists()
    forced = GateOptions(force=True)
    built_prob(trained, tmp_path / "e", backend="onnxruntime", precision="fp16", gate=forced)


def test_an_onnx_file_is_built_as_it_is(trained: Path, tmp_path: Path, engine_folder: Path) -> None:
    path = tmp_path / "prob.onnx"
    export_checkpoint(trained, path, "fp32", PROB)
    assert built_prob(path, tmp_path / "e", backend="openvino", precision="fp32").gate
    with pytest.raises(UserError, match="gives probabilities") as caught:
        build_engine(path, tmp_path / "f", BuildOptions(backend="openvino", precision="fp32"))
    assert "--result prob" in str(caught.value.hint)
    with pytest.raises(UserError, match="gives probabilities"):
        write_repository([engine_folder], tmp_path / "triton", TritonOptions())


def _planes(*levels: int) -> U8:
    return np.array(levels, np.uint8)[:, None, None]


@pytest.mark.parametrize(
    ("classes", "levels", "expected"),
    [
        (4, (10, 200, 40, 5), 1),
        (4, (255, 255, 255, 255), NO_CLASS),
        (2, (128, 127), 0),
        (1, (100, 155), 1),
        (1, (155, 100), 0),
        (1, (255, 255), NO_CLASS),
    ],
)
def test_the_mask_that_probabilities_say(
    classes: int, levels: tuple[int, ...], expected: int
) -> None:
    spec = ModelSpec(classes=classes, result="prob")
    assert mask_from_result(_planes(*levels), spec).tolist() == [[expected]]


def test_levels_are_compared_as_numbers() -> None:
    error = LevelError()
    error.update(_planes(0, 255), _planes(255, 255))
    error.update(_planes(3, 4), _planes(4, 4))
    assert error.result() == 256 / 4
    assert GoldenCase(np.zeros((2, 2, 1), np.uint8), _planes(0, 255, 7)).size == (1, 1)


def test_predict_writes_what_the_engine_gives(
    engine_folder: Path, tmp_path: Path, pictures: tuple[Path, Path]
) -> None:
    from unetrt.cli.main import main

    out = tmp_path / "out"
    asked = ["predict", "-m", str(engine_folder), "-i", str(pictures[0]), "--output-dir", str(out)]
    assert main([*asked, "--format", "prob-npy"]) == 0
    files = sorted(out.rglob("*.npy"))
    assert len(files) == len(list(pictures[0].iterdir()))
    assert np.load(files[0]).shape == (4, 64, 80)
    assert main([*asked[:-1], str(tmp_path / "masks")]) == 2, "it gives no masks"
