"""Scores against a count by hand, pixel for pixel."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unetrt.contract.metrics import ConfusionMatrix
from unetrt.contract.types import NO_CLASS, U8

NAMES = ("background", "a", "b", "c")
VALUES = st.sampled_from([0, 1, 2, 3, NO_CLASS])
MASKS = st.tuples(*(arrays(np.uint8, (5, 6), elements=VALUES) for _ in range(2)))


def matrix(truth: U8, predicted: U8) -> ConfusionMatrix:
    counted = ConfusionMatrix(len(NAMES))
    counted.update(truth, predicted)
    return counted


def overlap(truth: U8, predicted: U8, index: int) -> tuple[float | None, float | None]:
    """IoU and Dice of one class by sets of pixels."""
    pairs = list(zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True))
    true = {i for i, (t, _) in enumerate(pairs) if t == index}
    found = {i for i, (t, p) in enumerate(pairs) if p == index and t != NO_CLASS}
    if not true | found:
        return None, None
    both = len(true & found)
    return both / len(true | found), 2 * both / (len(true) + len(found))


@given(masks=MASKS)
@settings(deadline=None, max_examples=200)
def test_scores_equal_a_count_by_hand(masks: tuple[U8, U8]) -> None:
    scores = matrix(*masks).scores(NAMES)
    expected = [overlap(*masks, index) for index in range(4)]
    for score, name, (iou, dice) in zip(scores.classes, NAMES, expected, strict=True):
        assert score.name == name
        assert score.iou == pytest.approx(iou)
        assert score.dice == pytest.approx(dice)
    for mean, which in ((scores.foreground_miou, 0), (scores.foreground_dice, 1)):
        present = [value for pair in expected[1:] if (value := pair[which]) is not None]
        assert mean == (pytest.approx(sum(present) / len(present)) if present else None)
    truth, predicted = masks
    counted = truth != NO_CLASS
    accuracy = (truth == predicted)[counted].mean() if counted.any() else None
    assert scores.pixel_accuracy == pytest.approx(accuracy)


@given(first=MASKS, second=MASKS)
@settings(deadline=None)
def test_counts_add_up(first: tuple[U8, U8], second: tuple[U8, U8]) -> None:
    one, two = matrix(*first), matrix(*second)
    both = matrix(*first)
    both.update(*second)
    np.testing.assert_array_equal((one + two).counts, both.counts)
    np.testing.assert_array_equal((one + two).counts, (two + one).counts)
    np.testing.assert_array_equal(one.counts, matrix(*first).counts)
    one.merge(two)
    np.testing.assert_array_equal(one.counts, both.counts)


def row(*values: int) -> npt.NDArray[np.uint8]:
    return np.array([values], np.uint8)


def test_a_prediction_that_is_no_class_is_wrong() -> None:
    scores = matrix(row(1, 1, 0, 0), row(1, NO_CLASS, 0, NO_CLASS)).scores(NAMES)
    assert scores.pixel_accuracy == 0.5
    assert scores.classes[1].iou == 0.5
    assert scores.classes[0].dice == pytest.approx(2 / 3)


def test_ignored_pixels_do_not_count() -> None:
    scores = matrix(row(1, NO_CLASS, NO_CLASS), row(1, 0, 2)).scores(NAMES)
    assert scores.pixel_accuracy == 1
    assert scores.foreground_miou == 1
    assert scores.classes[2].iou is None


def test_an_absent_class_is_not_in_the_mean() -> None:
    scores = matrix(row(0, 1, 1, 3), row(0, 1, 0, 2)).scores(NAMES)
    assert [c.iou for c in scores.classes] == [0.5, 0.5, 0, 0]
    only = matrix(row(0, 1, 1), row(0, 1, 0)).scores(NAMES)
    assert only.foreground_miou == 0.5
    assert only.classes[3].iou is None


def test_without_foreground_there_is_no_mean() -> None:
    scores = matrix(row(0, 0), row(0, 0)).scores(NAMES)
    assert scores.foreground_miou is None
    assert scores.foreground_dice is None
    assert scores.pixel_accuracy == 1


def test_nothing_counted_has_no_scores() -> None:
    scores = ConfusionMatrix(4).scores(NAMES)
    assert scores.pixel_accuracy is None
    assert all(score.iou is None for score in scores.classes)


def test_json_has_the_documented_form() -> None:
    result = matrix(row(0, 1, 1), row(0, 1, 0)).scores(NAMES).to_dict()
    assert json.loads(json.dumps(result)) == {
        "foreground_miou": 0.5,
        "foreground_dice": pytest.approx(2 / 3),
        "pixel_accuracy": pytest.approx(2 / 3),
        "classes": [
            {"name": "background", "iou": 0.5, "dice": pytest.approx(2 / 3)},
            {"name": "a", "iou": 0.5, "dice": pytest.approx(2 / 3)},
            {"name": "b", "iou": None, "dice": None},
            {"name": "c", "iou": None, "dice": None},
        ],
    }


def test_254_classes_fit() -> None:
    truth = np.arange(254, dtype=np.uint8)[None]
    counted = ConfusionMatrix(254)
    counted.update(truth, truth)
    scores = counted.scores([str(i) for i in range(254)])
    assert scores.foreground_miou == 1


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="class 4"):
        matrix(row(4), row(0))
    with pytest.raises(ValueError, match="shapes"):
        matrix(row(0, 1), row(0))
    with pytest.raises(ValueError, match="3 classes"):
        ConfusionMatrix(4).merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="names"):
        ConfusionMatrix(4).scores(NAMES[:2])
