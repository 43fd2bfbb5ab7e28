"""Models that are compared with a checkpoint: at its threshold, its mask values, its scale."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.conftest import balanced_checkpoint
from unetrt.bench import row, run
from unetrt.bench.job import RowJob
from unetrt.bench.report import context_lines
from unetrt.bench.table import BenchOptions, bench_models
from unetrt.contract.errors import UserError
from unetrt.contract.spec import SpecOverrides
from unetrt.export.onnx_export import onnx_from_checkpoint
from unetrt.training.checkpoint import write_bare, write_checkpoint
from unetrt.training.options import values_text


@pytest.fixture(autouse=True)
def _rows_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one of its own would import PyTorch again; test_bench.py has such rows."""

    def answer(module: str, job: RowJob, timeout: float) -> Any:
        assert module == row.__name__
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(job))))
        with redirect_stdout(io.StringIO()) as told:
            assert row.main() == 0
        return json.loads(told.getvalue().splitlines()[-1])

    monkeypatch.setattr(row, "end_with_parent", lambda: None)
    monkeypatch.setattr(run, "answer_from_process", answer)


def test_a_model_is_compared_at_its_own_threshold_or_not_at_all(
    pictures: Path, tmp_path: Path
) -> None:
    """At another one PyTorch's masks are others, and a right model would be told to be wrong."""
    checkpoint = balanced_checkpoint(classes=1)
    wary = replace(checkpoint, spec=replace(checkpoint.spec, threshold=0.55))
    write_checkpoint(tmp_path / "net.pth", wary)
    onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx", "fp32")
    models = [tmp_path / "net.pth", tmp_path / "net.onnx"]
    options = BenchOptions(
        images=pictures, limit=2, seconds=0.05, repeats=1, device="cpu", peaks=False
    )
    with pytest.raises(UserError, match="was made with another threshold") as caught:
        bench_models(models, options)
    assert "--mask-threshold 0.5 " in caught.value.hint
    as_it_says = replace(options, overrides=SpecOverrides(threshold=0.55))
    with pytest.raises(UserError, match="was made with another threshold"):
        bench_models(models, as_it_says)
    bench = bench_models(models, replace(options, overrides=SpecOverrides(threshold=0.5)))
    found = {row.name: row.judgement for row in bench.rows}
    judgement = found[str(models[1])]
    assert judgement is not None
    assert judgement.agreement > 0.9999


def test_a_checkpoint_that_says_no_mask_values_is_compared_with_its_engine(
    pictures: Path, tmp_path: Path
) -> None:
    checkpoint = balanced_checkpoint()
    write_bare(tmp_path / "bare.pth", checkpoint)
    values = tuple(10 * value for value in range(checkpoint.spec.mask_classes))
    other = replace(checkpoint, spec=replace(checkpoint.spec, mask_values=values, scale=1.0))
    onnx_from_checkpoint(other, tmp_path / "net.onnx", "fp32")
    models = [tmp_path / "bare.pth", tmp_path / "net.onnx"]
    options = BenchOptions(
        images=pictures, limit=2, seconds=0.05, repeats=1, device="cpu", peaks=False,
        overrides=SpecOverrides(scale=1.0),
    )  # fmt: skip
    with pytest.raises(UserError, match="is of another network") as caught:
        bench_models(models, options)
    assert f"--mask-values {values_text(values)} " in caught.value.hint
    told = SpecOverrides(scale=1.0, mask_values=values)
    bench = bench_models(models, replace(options, overrides=told))
    assert [row.name for row in bench.rows if not row.result] == []


def test_a_model_of_another_scale_is_measured_and_named(pictures: Path, tmp_path: Path) -> None:
    checkpoint = balanced_checkpoint(scale=0.5)
    write_checkpoint(tmp_path / "net.pth", checkpoint)
    whole = replace(checkpoint, spec=replace(checkpoint.spec, scale=1.0))
    onnx_from_checkpoint(whole, tmp_path / "net.onnx", "fp32")
    options = BenchOptions(
        images=pictures, limit=2, seconds=0.05, repeats=1, device="cpu", peaks=False
    )
    bench = bench_models([tmp_path / "net.pth", tmp_path / "net.onnx"], options)
    (note,) = [note for note in bench.notes if "scale" in note]
    assert "net.onnx is of scale 1, the baseline of 0.5" in note
    assert note.endswith("--scale 1 compares alike")
    assert note in "\n".join(context_lines(bench))


@pytest.mark.parametrize("engines", [0, 1])
def test_an_image_that_no_row_could_read_ends_the_bench_before_its_first(
    engines: int, pictures: Path, tmp_path: Path
) -> None:
    """It had cost every row, or was called a fault of the masks."""
    checkpoint = balanced_checkpoint()
    write_checkpoint(tmp_path / "net.pth", checkpoint)
    onnx_from_checkpoint(checkpoint, tmp_path / "net.onnx", "fp32")
    images, masks = tmp_path / "my imgs", tmp_path / "masks"
    masks.mkdir()
    shutil.copytree(pictures, images)
    for path in images.iterdir():
        (masks / path.name).write_bytes(path.read_bytes())
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:100])
    options = BenchOptions(images=images, masks=masks, seconds=0.05, peaks=False)
    models = [tmp_path / "net.pth", tmp_path / "net.onnx"][: 1 + engines]
    with pytest.raises(UserError, match="measures on all of its images") as caught:
        bench_models(models, options)
    assert str(caught.value.seen).startswith("1 of 5: ")
    assert "3.png" in str(caught.value.seen)
    command = shlex.split(caught.value.hint.partition("   ")[0])
    assert command[1:] == ["predict", "-m", str(models[0]), "-i", str(images), "--no-save"]


def test_images_of_fewer_bits_are_told_with_the_flag_that_reads_them(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "net.pth", balanced_checkpoint())
    pixels = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)
    (tmp_path / "imgs").mkdir()
    cv2.imwrite(str(tmp_path / "imgs" / "a.png"), pixels)
    with pytest.raises(UserError, match="measures on all of its images") as caught:
        bench_models([tmp_path / "net.pth"], BenchOptions(images=tmp_path / "imgs", peaks=False))
    assert "--bit-depth 12" in caught.value.hint
