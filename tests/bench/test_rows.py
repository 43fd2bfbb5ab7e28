"""Rows of a checkpoint alone: which are left out, which cannot run, what int8 is measured on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.bench import rows
from unetrt.bench.rows import (
    SKIPPED,
    EngineRow,
    _obstacle,
    check_calibration,
    check_skipped,
    entries_from_checkpoint,
    is_uncalibrated,
)
from unetrt.contract.errors import UserError
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
