"""Rows of pages: none for two images, in bounded memory, whatever sizes come."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import ThresholdEngine
from unetrt.contract.errors import DeviceMemoryError
from unetrt.contract.types import U8
from unetrt.engine.base import HostBuffer, Memory
from unetrt.runtime.pages import Pages, Row

KEY = ((4, 6), (4, 6))
ROOM = 1 << 30


class WatchedEngine(ThresholdEngine):
    """made: the memory of every page."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[HostBuffer] = []

    def memory(self) -> Memory:
        self.made.append(HostBuffer())
        return self.made[-1]


def test_no_row_is_given_twice_while_it_is_held() -> None:
    with ThresholdEngine() as engine, Pages(engine, ROOM) as pages:
        pages.most = 6
        pages.expect(KEY, 5)
        lock, held = threading.Lock(), set[tuple[int, int]]()

        def work(seed: int) -> int:
            rng, mine, most = np.random.default_rng(seed), list[Row](), 0
            for _ in range(2000):
                row = pages.take(KEY) if rng.random() < 0.55 else None
                if row is not None:
                    place = (id(row.page), row.index)
                    with lock:
                        assert place not in held
                        held.add(place)
                    row.image[:] = seed
                    mine.append(row)
                    most = max(most, len(mine))
                elif mine:
                    gone = mine.pop(int(rng.integers(len(mine))))
                    assert (gone.image == seed).all()
                    with lock:
                        held.discard((id(gone.page), gone.index))
                        action = rng.random()
                        if action < 0.1:
                            pages.refuse(gone)
                        else:
                            if action < 0.5:
                                pages.seal(gone.page)
                            pages.give_back([gone])
            return most

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) > 8


def test_sizes_that_are_not_expected_have_none() -> None:
    with ThresholdEngine() as engine, Pages(engine, ROOM) as pages:
        pages.most = 2
        assert pages.take(KEY) is None
        pages.expect(KEY, 1)
        assert pages.take(KEY) is None, "one at a time runs where it lies"
        pages.expect(KEY, 2)
        assert pages.take(KEY) is not None
        for batch in (1, None):
            pages.expect(KEY, 2)
            assert pages.take(KEY) is not None
            pages.expect(KEY, batch)
            assert pages.take(KEY) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 300))
def test_neither_pages_nor_bytes_exceed_what_may_be(most: int, batch: int, room: int) -> None:
    with ThresholdEngine() as engine, Pages(engine, room) as pages:
        pages.most = most
        pages.expect(KEY, batch)
        rows = [row for _ in range(40) if (row := pages.take(KEY)) is not None]
        assert len(rows) == batch * min(most, room // (24 * batch))
        pages.give_back(rows)
        again = [row for _ in range(40) if (row := pages.take(KEY)) is not None]
        assert len(again) == len(rows), "what was given back serves again"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(2, 5)), min_size=1, max_size=12))
def test_memory_is_bounded_whatever_sizes_come(sizes: list[tuple[int, int]]) -> None:
    with WatchedEngine() as engine, Pages(engine, 400) as pages:
        pages.most = 3
        for side, batch in sizes:
            key = ((side, side), (side, side))
            pages.expect(key, batch)
            rows = [pages.take(key) for _ in range(2 * batch)]
            assert sum(buffer._bytes.size for buffer in engine.made) <= 400
            assert sum(buffer._bytes.size > 0 for buffer in engine.made) <= 3
            assert (rows[0] is not None) == (side * side * batch <= 400), "idle ones make room"
            pages.give_back(rows)
    assert sum(buffer._bytes.size for buffer in engine.made) == 0


def test_idle_pages_stay_where_they_would_make_no_room() -> None:
    huge = ((100, 100), (100, 100))
    with WatchedEngine() as engine, Pages(engine, 1000) as pages:
        pages.most = 2
        pages.expect(KEY, 2)
        pages.expect(huge, 2)
        for _ in range(10):
            rows = [pages.take(KEY) for _ in range(4)]
            pages.give_back(rows)
            assert pages.take(huge) is None
    assert len(engine.made) == 2


def test_a_page_that_cannot_be_had_does_not_end_smaller_ones() -> None:
    class Small(HostBuffer):
        def view(self, shape: tuple[int, ...]) -> U8:
            if math.prod(shape) > 100:
                raise DeviceMemoryError("nothing left to pin")
            return super().view(shape)

    class Pinned(ThresholdEngine):
        def memory(self) -> Memory:
            return Small()

    with Pinned() as engine, Pages(engine, ROOM) as pages:
        pages.most = 2
        pages.expect(KEY, 8)
        assert pages.take(KEY) is None
        pages.expect(KEY, 4)
        assert pages.take(KEY) is not None


def test_an_idle_page_serves_for_another_size() -> None:
    larger = ((8, 6), (8, 6))
    with ThresholdEngine() as engine, Pages(engine, ROOM) as pages:
        pages.most = 1
        for key in (KEY, larger, KEY, larger):
            pages.expect(key, 2)
            rows = [pages.take(key), pages.take(key)]
            assert all(row is not None and row.image.shape == (*key[0], 1) for row in rows)
            assert pages.take(larger) is None
            pages.give_back(rows)
