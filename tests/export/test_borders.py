"""Disagreement at class borders and inside, against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unetrt.contract.types import NO_CLASS, U8
from unetrt.export.borders import BorderCount, border_of

classes = st.sampled_from([0, 1, 2, NO_CLASS])
masks = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=classes)


def near_another(mask: U8, y: int, x: int, reach: int) -> bool:
    rows, columns = range(mask.shape[0]), range(mask.shape[1])
    return any(
        mask[j, i] != mask[y, x]
        for j in rows
        for i in columns
        if max(abs(j - y), abs(i - x)) <= reach
    )


@given(masks, st.integers(1, 3))
def test_a_border_is_near_another_class(mask: U8, reach: int) -> None:
    border = border_of(mask, reach)
    assert border.shape == mask.shape
    for (y, x), found in np.ndenumerate(border):
        assert found == near_another(mask, y, x, reach)


@given(masks, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_both_shares_are_those_of_a_count_by_hand(mask: U8, seed: int, reach: int) -> None:
    found = np.random.default_rng(seed).choice([0, 1, 2, NO_CLASS], mask.shape).astype(np.uint8)
    count = BorderCount(reach)
    count.update(mask, found)
    count.update(mask, mask)
    at, inside = [], []
    for (y, x), value in np.ndenumerate(mask):
        if value != NO_CLASS:
            part = at if near_another(mask, y, x, reach) else inside
            part += [found[y, x] != value, False]
    result = count.result()
    assert result.reach == reach
    assert result.at_border == (pytest.approx(np.mean(at)) if at else None)
    assert result.inside == (pytest.approx(np.mean(inside)) if inside else None)
    whole = len(at) + len(inside)
    assert result.share == (pytest.approx(len(at) / whole) if whole else None)


def test_an_edge_of_the_picture_is_no_border() -> None:
    assert not border_of(np.ones((4, 5), np.uint8)).any()


def test_one_pixel_has_a_square_of_border() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[4, 4] = 1
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True
    assert np.array_equal(border_of(mask, 2), expected)
