"""unetrt evaluate: the scores, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command
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
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["class", "IoU", "Dice"]
    assert f"{scores['classes'][1]['iou']:.4f}" in lines[2]
    assert f"{scores['foreground_miou']:.4f}" in lines[5]
    assert json.loads(unetrt(*asked, "--json", "-").out) == scores


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
