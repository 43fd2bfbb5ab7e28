"""PyTorch's CUDA graphs, for test_gpu_torch: each case in a process that it may take down.

python -m tests.gpu.torch_graphs ENGINE_DIR CASE
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.conftest import steel
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine

SIZE: Size = (75, 101)
SHAPES: tuple[tuple[int, Size], ...] = (
    (4, (75, 101)),
    (2, (75, 101)),
    (2, (33, 17)),
    (1, (1, 1)),
    (3, (16, 200)),
    (4, (160, 96)),
)
"""(batch, size): smaller than before, odd, less than the network takes."""
PICTURES = 7


picture = cache(steel)


def start(slot: Any, batch: int, size: Size, first: int) -> None:
    slot.reserve(batch, size)[:] = [picture(first + i, *size) for i in range(batch)]
    slot.submit(batch, size)


def masks_of(slot: Any, batch: int, size: Size, first: int) -> U8:
    start(slot, batch, size, first)
    return slot.masks().copy()  # type: ignore[no-any-return]


def without_graphs(engine: Engine, batch: int, size: Size) -> list[U8]:
    """Of as many batches, the pictures one further in each."""
    engine.graphs = False
    with closing(engine.slot()) as slot:
        found = [masks_of(slot, batch, size, first) for first in range(PICTURES)]
    engine.graphs = True
    return found


def is_captured(slot: Any) -> bool:
    return slot._kernel._replay._graph is not None


def three_slots_in_flight_keep_their_own_masks(engine: Engine, graphs: bool = True) -> None:
    """With graphs the second batch of a slot is captured, all others are replayed."""
    expected, count = without_graphs(engine, 2, SIZE), 300
    engine.graphs = graphs
    slots = [engine.slot() for _ in range(3)]
    for index in range(count + len(slots)):
        slot = slots[index % len(slots)]
        if index >= len(slots):
            np.testing.assert_array_equal(slot.masks(), expected[(index - len(slots)) % PICTURES])
        if index < count:
            start(slot, 2, SIZE, index % PICTURES)
    if graphs:
        assert all(map(is_captured, slots)), "no graph was captured"
    for slot in slots:
        slot.close()


def shapes_change_in_a_slot(engine: Engine) -> None:
    expected = {shape: without_graphs(engine, *shape) for shape in SHAPES}
    with closing(engine.slot()) as slot:
        for shape in SHAPES * 2:
            for first, masks in enumerate(expected[shape]):
                np.testing.assert_array_equal(masks_of(slot, *shape, first), masks)
            assert is_captured(slot)


def new_slots_take_no_new_memory(engine: Engine, graphs: bool = True) -> None:
    """Nor do new shapes of a slot."""
    engine.graphs = graphs

    def use_slots(count: int) -> None:
        for _ in range(count):
            with closing(engine.slot()) as slot:
                for batch in (4, 4, 4, 2, 2, 2):
                    masks_of(slot, batch, (160, 160), 0)

    use_slots(3)
    before = torch.cuda.mem_get_info()[0]
    use_slots(50)
    assert before - torch.cuda.mem_get_info()[0] < 1 << 20


def a_slot_that_closes_leaves_what_others_replay(engine: Engine) -> None:
    """It gives memory back to the device while they are in flight."""
    expected = without_graphs(engine, 2, SIZE)
    with closing(engine.slot()) as slot:
        for turn in range(30):
            first = turn % PICTURES
            start(slot, 2, SIZE, first)
            with closing(engine.slot()) as other:
                for _ in range(3):
                    masks_of(other, 4, (160, 96), 0)
            np.testing.assert_array_equal(slot.masks(), expected[first])


def threads_capture_at_the_same_time(engine: Engine) -> None:
    expected = {shape: without_graphs(engine, *shape) for shape in SHAPES}
    failures: list[BaseException] = []

    def work(turn: int) -> None:
        try:
            with closing(engine.slot()) as slot:
                for shape in SHAPES[turn:] + SHAPES[:turn]:
                    for first, masks in enumerate(expected[shape]):
                        np.testing.assert_array_equal(masks_of(slot, *shape, first), masks)
        except BaseException as error:  # noqa: BLE001  told in the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def a_capture_that_breaks_off_leaves_slots_that_work(engine: Any) -> None:
    """A wait for the device is not allowed in one: the driver ends it."""
    expected = without_graphs(engine, 2, SIZE)
    net = engine._net

    def waits(images: Tensor, like: Tensor) -> Tensor:
        found: Tensor = net(images, like)
        torch.cuda.current_stream().synchronize()
        return found

    engine._net = waits
    with closing(engine.slot()) as slot:
        for first, masks in enumerate(expected):
            np.testing.assert_array_equal(masks_of(slot, 2, SIZE, first), masks)
        assert slot._kernel._replay.refused
    engine._net = net
    with closing(engine.slot()) as slot:
        for first, masks in enumerate(expected):
            np.testing.assert_array_equal(masks_of(slot, 2, SIZE, first), masks)
        assert is_captured(slot), slot._kernel._replay.refused


CASES: dict[str, Callable[[Any], None]] = {
    case.__name__: case
    for case in (
        three_slots_in_flight_keep_their_own_masks,
        shapes_change_in_a_slot,
        new_slots_take_no_new_memory,
        a_slot_that_closes_leaves_what_others_replay,
        threads_capture_at_the_same_time,
        a_capture_that_breaks_off_leaves_slots_that_work,
    )
}


if __name__ == "__main__":
    with open_engine(Path(sys.argv[1])) as opened:
        CASES[sys.argv[2]](opened)
