"""unetrt predict: --slots, --trace and probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command


def test_a_trace_of_the_slots_that_were_asked_for(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    trace, out = tmp_path / "trace.json", tmp_path / "out"
    outcome = unetrt(
        *("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", out),
        *("--slots", 1, "--trace", trace, "--device", "cpu"),
    )
    assert outcome.status == 0
    events = json.loads(trace.read_text())
    rows = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert [row for row in rows if row.startswith("slot")] == ["slot 0"]
    written = [event for event in events if event["name"] == "write"]
    assert len(written) == 4


def test_a_job_that_ends_in_an_error_leaves_its_trace(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    trace = tmp_path / "trace.json"
    outcome = unetrt(
        *("predict", "-m", checkpoint_file(), "-i", tmp_path / "a.png", "--trace", trace)
    )
    assert outcome.status == 2
    assert "decode" in {event["name"] for event in json.loads(trace.read_text())}


def test_a_trace_that_cannot_be_written_is_told_before_the_work(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    for wrong in (
        ["--trace", tmp_path],
        ["--trace", tmp_path / "no" / "t.json"],
        ["--slots", 0],
        ["--slots", 257],
    ):
        outcome = unetrt("predict", "-m", checkpoint_file(), "-i", pictures, *wrong)
        assert outcome.status == 2
        assert "expected:" in outcome.err


@pytest.mark.parametrize("classes", [1, 2])
def test_probabilities_of_two_classes_are_a_grey_image(
    classes: int,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
) -> None:
    model = checkpoint_file(classes=classes)
    for fmt in ("index", "prob", "prob-npy"):
        outcome = unetrt(
            *("predict", "-m", model, "-i", pictures, "--output-dir", tmp_path / fmt),
            *("--format", fmt, "--device", "cpu"),
        )
        assert outcome.status == 0, outcome.err
    for name in ("a", "sub/c"):
        with Image.open(tmp_path / "prob" / f"{name}.png") as image:
            assert image.mode == "L"
            levels = np.asarray(image)
        planes = np.load(tmp_path / "prob-npy" / f"{name}.npy")
        mask = np.asarray(Image.open(tmp_path / "index" / f"{name}.png"))
        assert planes.shape == (2, *mask.shape)
        assert planes.dtype == np.uint8
        np.testing.assert_array_equal(levels, planes[1])
        sure = np.abs(levels.astype(int) - 127.5) > 1
        np.testing.assert_array_equal((levels > 127)[sure], (mask > 0)[sure])
        assert len(np.unique(levels)) >= 3


def test_probabilities_of_an_exported_graph(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    onnx, out = tmp_path / "prob.onnx", tmp_path / "out"
    assert unetrt("export", checkpoint_file(), "-o", onnx, "--result", "prob").status == 0
    predict = ("predict", "-m", onnx, "-i", pictures, "--output-dir", out)
    assert unetrt(*predict, "--format", "prob-npy").status == 0
    planes = np.load(out / "a.npy")
    assert planes.shape[0] == 4
    assert np.abs(planes.sum(0, dtype=int) - 255).max() <= 2
    assert "--format prob" in unetrt(*predict).error
    assert "gives probabilities" in unetrt("build", onnx, "-o", tmp_path / "engine").error


def test_probabilities_that_have_no_form_are_refused(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    exported: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
) -> None:
    def predict(model: Path, *more: object) -> str:
        return unetrt("predict", "-m", model, "-i", pictures, *more, "--format", "prob").whole_error

    folder = ("--output-dir", tmp_path / "out")
    assert "--format prob-npy" in predict(checkpoint_file(), *folder)
    assert "shows masks" in predict(checkpoint_file(), "--overlay", tmp_path / "over", *folder)
    assert "shows masks" in predict(checkpoint_file(), "--viz")
    assert (
        "--result prob"
        in unetrt(*("predict", "-m", exported(), "-i", pictures, *folder, "--format", "prob")).error
    )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.png"))
