"""Rows of a bench: their names, which cannot run, how they are built, what int8 is measured on."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.bench import rows
from unetrt.bench.rows import (
    SKIPPED,
    EngineRow,
    _obstacle,
    baseline_checkpoint,
    build_line,
    build_options,
    check_calibration,
    check_skipped,
    entries_from_checkpoint,
    entries_from_models,
    is_uncalibrated,
)
from unetrt.bench.run import predict_flags
from unetrt.bench.table import BenchOptions
from unetrt.bench.text import free_name
from unetrt.cli import build
from unetrt.contract.errors import UserError
from unetrt.contract.spec import SpecOverrides
from unetrt.engine.probe import BackendStatus
from unetrt.export.build import BuildOptions, Built, build_engine


def test_rows_that_are_left_out_are_listed_and_not_built(
    checkpoint_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.bench.rows.ENGINES", (EngineRow("onnxruntime", "fp32"),))
    skip = ("torch-compile", "onnxruntime-fp32")
    entries = entries_from_checkpoint(checkpoint_file(), tmp_path, [(64, 64)], "cpu", skip=skip)
    assert {entry.name for entry in entries if entry.reason == SKIPPED} == set(skip)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [False, True])
def test_int8_takes_its_ranges_from_where_it_is_told(
    given: bool,
    checkpoint_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Path | None] = []

    def build(model: Path, directory: Path, options: BuildOptions) -> Built:
        asked.append(options.calibration)
        return build_engine(model, directory, options)

    monkeypatch.setattr("unetrt.bench.rows.build_engine", build)
    monkeypatch.setattr("unetrt.bench.rows.ENGINES", (EngineRow("openvino", "int8"),))
    (tmp_path / "imgs").mkdir()
    Image.fromarray(steel(1, 64, 64)[..., 0]).save(tmp_path / "imgs" / "a.png")
    folder = tmp_path / "imgs" if given else None
    out = tmp_path / "engines"
    entries = entries_from_checkpoint(checkpoint_file(), out, [(64, 64)], "cpu", calibration=folder)
    assert asked == [folder]
    assert is_uncalibrated(entries, folder) != given


def test_a_processor_without_bf16_is_no_failure_of_the_bench(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row, status = EngineRow("openvino", "bf16"), BackendStatus("openvino", True, True, "1")
    for able in (False, True):
        monkeypatch.setattr(rows, "supports_bf16", lambda able=able: able)
        assert ("no bf16" in _obstacle(row, status, "auto")) != able


def test_calibration_is_of_engines_that_are_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a checkpoint alone"):
        check_calibration(tmp_path, alone=False)
    with pytest.raises(UserError, match="no image"):
        check_calibration(tmp_path, alone=True)


def test_a_row_to_skip_is_one_that_there_is() -> None:
    check_skipped(("torch-compile", "openvino-int8"), alone=True)
    with pytest.raises(UserError, match="no such row") as caught:
        check_skipped(("torch",), alone=True)
    assert "torch-compile" in str(caught.value.expected)
    with pytest.raises(UserError, match="a checkpoint alone"):
        check_skipped(("torch-compile",), alone=False)


def test_the_command_builds_what_the_bench_has_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engine-a").mkdir()
    target = free_name("engine-a", lambda name: Path(name).exists())
    assert target == "engine-a-2"
    options = build_options("tensorrt", "fp16", [(200, 90), (100, 300)], SpecOverrides(scale=0.5))
    line = build_line(tmp_path / "my net.pth", target, options, forced=True)
    assert shlex.split(line) == [
        *("unetrt", "build", str(tmp_path / "my net.pth"), "-o", "engine-a-2"),
        *("--backend", "tensorrt", "--precision", "fp16", "--scale", "0.5"),
        *("--size", "100x90..200x300", "--force"),
    ]
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    assert parser.parse_args(shlex.split(line)[2:]).size == [((100, 90), (200, 300))]
    line = build_line(Path("a.pth"), "x", build_options("openvino", "int8", [(8, 8)]), False)
    assert line == "unetrt build a.pth -o x --backend openvino --precision int8"
    ranges = build_options("openvino", "int8", [(8, 8)], calibration=Path("my imgs"))
    assert build_line(Path("a.pth"), "x", ranges, False).endswith("--calibration 'my imgs'")
    assert build_options("openvino", "fp32", [(8, 8)], calibration=Path("imgs")).calibration is None
    flags = BenchOptions(
        images=tmp_path, device="cuda:1", overrides=SpecOverrides(scale=0.5), bit_depth=12
    )
    assert predict_flags(flags, built=True) == "--device cuda:1 --bit-depth 12"
    assert predict_flags(flags, built=False) == "--device cuda:1 --scale 0.5 --bit-depth 12"
    overrides = SpecOverrides(scale=0.5, threshold=0.3, mask_values=(0, 255))
    told = "--scale 0.5 --mask-threshold 0.3 --mask-values 0,255"
    assert predict_flags(replace(flags, overrides=overrides), built=False) == (
        f"--device cuda:1 {told} --bit-depth 12"
    )
    wary = build_options("openvino", "fp32", [(8, 8)], overrides)
    assert build_line(Path("a.pth"), "x", wary, False).endswith(f"--precision fp32 {told}")


def test_the_first_checkpoint_is_the_baseline(tmp_path: Path) -> None:
    models = [tmp_path / "m.onnx", tmp_path, tmp_path / "a.pth", tmp_path / "b.pth"]
    assert baseline_checkpoint(models).name == "a.pth"
    entries = entries_from_models(models, models[2])
    assert [entry.backend for entry in entries] == ["reference", "auto", "auto", "auto", "auto"]


def test_a_model_that_comes_twice_has_two_names() -> None:
    """An A/A test: rows, masks, peers and comparisons are found by their names."""
    models = [Path("a.pth"), Path("eng"), Path("eng"), Path("eng (2)"), Path("reference loop")]
    entries = entries_from_models(models, models[0])
    assert [entry.name for entry in entries] == [
        "reference loop",
        "a.pth",
        "eng",
        "eng (2)",
        "eng (2) (2)",
        "reference loop (2)",
    ]
    assert [str(entry.model) for entry in entries[2:5]] == ["eng", "eng", "eng (2)"]
