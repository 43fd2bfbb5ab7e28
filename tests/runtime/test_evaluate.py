"""Scores of an engine against the truth, and against a count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import torch_engine, write_picture
from unetrt.contract.errors import UserError
from unetrt.contract.headers import ORIENTATION
from unetrt.contract.resize import network_input
from unetrt.contract.types import U8
from unetrt.engine.base import Engine
from unetrt.runtime.evaluate import evaluate_engine
from unetrt.runtime.pipeline import PipelineOptions

SIZES = [(40, 32), (33, 57), (64, 48)]


def write_pairs(folder: Path, count: int, classes: int, ignore: int | None = None) -> list[U8]:
    """Pictures with random truths of 8×8 squares; return the truths."""
    truths = []
    for index in range(count):
        size = SIZES[index % 3]
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, classes, (8, 8), np.uint8)
        truth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.NEAREST))
        truth = truth.copy()
        if ignore is not None:
            truth[:3] = ignore
        write_picture(folder / "imgs" / f"{index}.png", steel(index, *size))
        write_picture(folder / "masks" / f"{index}.png", truth[..., None])
        truths.append(truth)
    return truths


def iou_by_hand(pairs: list[tuple[U8, U8]], value: int) -> float:
    both = sum(int(((t == value) & (m == value)).sum()) for t, m in pairs)
    either = sum(int(((t == value) | (m == value)).sum()) for t, m in pairs)
    return both / either


def predictions(engine: Engine, folder: Path, count: int) -> list[U8]:
    paths = [folder / "imgs" / f"{index}.png" for index in range(count)]
    return [engine.run(*network_input(path, engine.spec)) for path in paths]


@pytest.mark.parametrize(("classes", "ignore"), [(1, None), (2, None), (4, None), (4, 200)])
@pytest.mark.parametrize("options", [None, PipelineOptions(batch=3, load_threads=2)])
def test_scores_are_those_counted_by_hand(
    classes: int, ignore: int | None, options: PipelineOptions | None, tmp_path: Path
) -> None:
    truths = write_pairs(tmp_path, 7, max(2, classes), ignore)
    checkpoint = balanced_checkpoint(classes=classes)
    checkpoint.spec = replace(checkpoint.spec, ignore_index=ignore)
    with torch_engine(checkpoint) as engine:
        found = evaluate_engine(engine, tmp_path / "imgs", tmp_path / "masks", options)
        masks = predictions(engine, tmp_path, 7)
    assert (found.images, found.failures) == (7, [])
    counted = [(t[t != ignore], m[t != ignore]) for t, m in zip(truths, masks, strict=True)]
    expected = [iou_by_hand(counted, value) for value in range(max(2, classes))]
    assert [score.iou for score in found.scores.classes] == pytest.approx(expected)
    assert found.scores.foreground_miou == pytest.approx(np.mean(expected[1:]))
    equal = np.concatenate([t == m for t, m in counted])
    assert found.scores.pixel_accuracy == pytest.approx(equal.mean())
    assert 0.05 < equal.mean() < 0.95, "a test of perfect masks would show little"


def test_pairs_that_cannot_be_scored_are_left_out_and_named(tmp_path: Path) -> None:
    truths = write_pairs(tmp_path, 6, 4)
    write_picture(tmp_path / "masks" / "1.png", np.zeros((9, 9, 1), np.uint8))
    write_picture(tmp_path / "masks" / "2.png", np.full((*SIZES[2], 1), 77, np.uint8))
    (tmp_path / "imgs" / "3.png").write_bytes(b"no image")
    with torch_engine(balanced_checkpoint()) as engine:
        found = evaluate_engine(engine, tmp_path / "imgs", tmp_path / "masks")
        masks = predictions(engine, tmp_path, 1) + [
            engine.run(*network_input(tmp_path / "imgs" / f"{i}.png", engine.spec)) for i in (4, 5)
        ]
    reasons = {path.name: reason for path, reason in found.failures}
    assert sorted(reasons) == ["1.png", "2.png", "3.png"]
    assert "differ in size" in reasons["1.png"]
    assert "77" in reasons["2.png"]
    assert "not an image" in reasons["3.png"]
    good = list(zip([truths[i] for i in (0, 4, 5)], masks, strict=True))
    assert found.images == 6
    expected = [iou_by_hand(good, value) for value in range(4)]
    assert [score.iou for score in found.scores.classes] == pytest.approx(expected)


def test_twelve_bits_in_a_file_of_sixteen(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2, 4)
    for path in (tmp_path / "imgs").iterdir():
        deep = np.asarray(Image.open(path)).astype(np.uint16) * 16
        Image.fromarray(deep).save(path)
    folders = tmp_path / "imgs", tmp_path / "masks"
    with torch_engine(balanced_checkpoint()) as engine:
        assert "--bit-depth 12" in evaluate_engine(engine, *folders).failures[0][1]
        assert not evaluate_engine(engine, *folders, bit_depth=12).failures


def test_an_output_that_is_not_finite_is_no_score(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2, 4)
    checkpoint = balanced_checkpoint()
    checkpoint.state["inc.double_conv.0.weight"].fill_(3e38)
    with torch_engine(checkpoint) as engine:
        found = evaluate_engine(engine, tmp_path / "imgs", tmp_path / "masks")
    assert len(found.failures) == 2
    assert found.scores.pixel_accuracy is None


def test_every_file_without_a_partner_is_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3, 4)
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "imgs" / "2.png").unlink()
    with torch_engine(balanced_checkpoint()) as engine, pytest.raises(UserError) as caught:
        evaluate_engine(engine, tmp_path / "imgs", tmp_path / "masks")
    text = str(caught.value)
    assert "no mask for" in text
    assert "0.png" in text
    assert "no image for" in text
    assert "2.png" in text
    assert "train" not in caught.value.message.replace(str(tmp_path), "")


def test_turned_photos_whose_masks_say_nothing_of_it_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path, 2, 4)
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    for path in (tmp_path / "imgs").iterdir():
        Image.open(path).save(path, exif=exif)
    with torch_engine(balanced_checkpoint()) as engine:
        evaluate_engine(engine, tmp_path / "imgs", tmp_path / "masks")
    assert "2 of 2 images are turned by an EXIF orientation" in caplog.text
