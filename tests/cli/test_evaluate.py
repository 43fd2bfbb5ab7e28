"""unetrt evaluate: the scores, and what it leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command
from tests.conftest import ROOT
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.synthetic import draw_pair


def write_pairs(folder: Path, count: int) -> tuple[Path, Path]:
    images, masks = folder / "imgs", folder / "masks"
    images.mkdir()
    masks.mkdir()
    for index in range(count):
        image, mask = draw_pair(index, (40, 48))
        Image.fromarray(image).save(images / f"{index}.png")
        Image.fromarray(mask).save(masks / f"{index}.png")
    return images, masks


def test_evaluate_says_and_writes_the_scores(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 5)
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    outcome = unetrt(*asked, "--json", tmp_path / "scores.json")
    assert outcome.status == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] > 0
    assert (scores["failed"], scores["failures"]) == (0, [])
    assert set(scores) >= {"foreground_miou", "foreground_dice", "pixel_accuracy", "classes"}
    assert [set(row) for row in scores["classes"]] == [{"name", "iou", "dice"}] * 4
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [key for key in scores if f"`{key}`" not in page] == [], "they are documented"
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["class", "IoU", "Dice"]
    assert f"{scores['classes'][1]['iou']:.4f}" in lines[2]
    assert f"{scores['foreground_miou']:.4f}" in lines[5]
    assert json.loads(unetrt(*asked, "--json", "-").out) == scores


def test_scores_are_told_where_their_file_cannot_be_written(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unetrt.contract.files.write_atomically", full)
    images, masks = write_pairs(tmp_path, 2)
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    outcome = unetrt(*asked, "--json", tmp_path / "scores.json")
    assert "No space left" in outcome.whole_error
    assert "foreground mean" in outcome.out


def test_mask_values_do_not_name_what_is_ignored(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    """All pixels of that class would be left out of scores, which would be perfect."""
    images, masks = write_pairs(tmp_path, 2)
    old = read_checkpoint(checkpoint_file(classes=2))
    model = tmp_path / "ignores.pth"
    write_checkpoint(model, replace(old, spec=replace(old.spec, ignore_index=255)))
    for asked in (
        ("evaluate", model, "--images", images, "--masks", masks),
        ("predict", "-m", model, "-i", images, "--output-dir", tmp_path / "out"),
        ("build", model, "-o", tmp_path / "engine", "--backend", "onnxruntime"),
    ):
        error = unetrt(*asked, "--mask-values", "0,255").whole_error
        assert "--mask-values 0,255, and ignore_index 255" in error


def test_evaluate_leaves_out_what_it_cannot_score(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 3)
    Image.fromarray(np.zeros((7, 7), np.uint8)).save(masks / "1.png")
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    outcome = unetrt(*asked)
    assert outcome.status == 1
    assert "differ in size" in outcome.err
    assert "foreground mean" in outcome.out
    assert outcome.out.endswith("of 2 images; 1 could not be scored\n")
    for path in images.iterdir():
        path.write_text("no image")
    assert "no image could be used" in unetrt(*asked).whole_error


def test_evaluate_wants_a_mask_for_each_image(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 3)
    (masks / "2.png").unlink()
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    assert f"no mask for {images / '2.png'}" in unetrt(*asked).error
    missing = ("evaluate", checkpoint_file(), "--images", tmp_path / "no", "--masks", masks)
    assert "no folder of images" in unetrt(*missing).error
