"""Masks judged by the files that rows leave, and truths that no row could be judged by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetrt.bench.judge import Judgement, judge_masks, truth_masks, verdict
from unetrt.bench.options import BenchOptions
from unetrt.bench.run import Run
from unetrt.contract.errors import UserError
from unetrt.contract.masks import mask_pixels
from unetrt.contract.spec import ModelSpec


def write_mask(path: Path, mask: object, spec: ModelSpec) -> Path:
    Image.fromarray(mask_pixels(np.asarray(mask, np.uint8), spec)).save(path)
    return path


def test_agreement_is_counted_over_pixels_of_the_files(tmp_path: Path) -> None:
    spec = ModelSpec(classes=3, mask_values=(0, 100, 255), class_names=("a", "b", "c"))
    first, second = np.zeros((2, 2)), np.full((4, 9), 2)
    other_first, other_second = first.copy(), second.copy()
    other_first[0, 0] = 1
    other_second[1, :3] = 0
    mine = [write_mask(tmp_path / f"m{i}.png", m, spec) for i, m in enumerate((first, second))]
    theirs = [
        write_mask(tmp_path / f"t{i}.png", m, spec)
        for i, m in enumerate((other_first, other_second))
    ]
    same = judge_masks(mine, mine, spec)
    assert (same.agreement, same.miou) == (1, None)
    found = judge_masks(mine, theirs, spec)
    assert found.agreement == pytest.approx(1 - 4 / 40)
    assert found.iou == {
        "a": pytest.approx(3 / 7),
        "b": pytest.approx(0),
        "c": pytest.approx(33 / 36),
    }
    with pytest.raises(UserError, match="differ in size"):
        judge_masks(mine, theirs[::-1], spec)
    with pytest.raises(UserError, match="no masks to compare"):
        judge_masks(mine, [tmp_path / "none.png", *theirs[1:]], spec)


def test_the_truth_gives_scores_of_the_images_that_have_one(tmp_path: Path) -> None:
    spec = ModelSpec(classes=2, mask_values=(0, 255), class_names=("a", "b"))
    half, full = np.eye(4), np.ones((4, 4))
    found = [write_mask(tmp_path / f"{i}.png", m, spec) for i, m in enumerate((half, full))]
    truth = write_mask(tmp_path / "truth.png", full, spec)
    judged = judge_masks(found, found, spec, {0: truth})
    assert judged.miou == pytest.approx(0.25)
    assert judged.truth_iou == {"a": 0, "b": pytest.approx(0.25)}
    wide = write_mask(tmp_path / "wide.png", np.ones((4, 5)), spec)
    with pytest.raises(UserError, match="differ in size"):
        judge_masks(found, found, spec, {0: wide})


def test_masks_are_matched_to_images_by_their_names(tmp_path: Path) -> None:
    images, masks = tmp_path / "i", tmp_path / "m"
    for folder, names in ((images, ("a.jpg", "b.png")), (masks, ("b.png", "c.png"))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    spec = ModelSpec(classes=2)
    for path in (images / "b.png", masks / "b.png"):
        Image.new("L", (6, 4)).save(path)
    paths = sorted(images.iterdir())
    assert truth_masks(paths, images, masks, spec) == {1: masks / "b.png"}
    assert truth_masks(paths, images, None, spec) == {}
    with pytest.raises(UserError, match="belongs to an image"):
        truth_masks(paths[:1], images, masks, spec)
    for wrong in (Image.new("L", (4, 6)), Image.new("L", (6, 4), 9)):
        wrong.save(masks / "b.png")
        with pytest.raises(UserError, match="cannot be judged by") as caught:
            truth_masks(paths, images, masks, spec)
        assert "b.png" in str(caught.value.seen)


def test_scores_of_some_images_alone_are_told(tmp_path: Path) -> None:
    images = [tmp_path / f"{i}.png" for i in range(3)]
    options = BenchOptions(images=tmp_path)
    for known, told in ((0, []), (2, ["2 of the 3 images"]), (1, ["1 of the 3 images"]), (3, [])):
        run = Run(images, dict(enumerate(images[:known])), tmp_path, options, ModelSpec())
        assert [note.partition(" ha")[0] for note in run.notes] == told


def test_the_bounds_of_the_gate_decide() -> None:
    before = Judgement(agreement=1, iou={}, miou=0.8, truth_iou={"a": 0.8, "b": None})
    near = replace(before, agreement=0.9985, truth_iou={"a": 0.795, "b": None})
    assert verdict(near, before, "bf16") == ""
    assert verdict(near, before, "fp32") == "agreement below 0.9999: no speed-up"
    worse = replace(near, truth_iou={"a": 0.7, "b": None})
    assert verdict(worse, before, "bf16") == "IoU of a down by 0.100: no speed-up"
    assert verdict(worse, None, "bf16") == ""
    gone = replace(near, truth_iou={"a": None, "b": None})
    assert "down by 0.800" in verdict(gone, before, "bf16")
