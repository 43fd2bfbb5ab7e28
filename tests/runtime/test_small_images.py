"""An engine that takes several small images a batch, and any number: no place is empty."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine
from unetrt.contract.errors import DeviceMemoryError
from unetrt.contract.types import U8, Size
from unetrt.runtime.pipeline import Loaded, PipelineOptions, run_pipeline

SMALL: Size = (4, 6)
LARGE: Size = (40, 60)


class JoiningEngine(ThresholdEngine):
    """Up to four images of less than 1,000 pixels a batch; ran: the shapes of its batches.

    most: images that there is memory for.
    """

    any_batch = True

    def __init__(self, most: int = 4) -> None:
        super().__init__(slots=1)
        self.ran: list[tuple[int, ...]] = []
        self._most = most

    @property
    def most_batch(self) -> int:
        return 4

    def batch_for(self, input_size: Size) -> int:
        return 4 if input_size[0] * input_size[1] < 1000 else 1

    def infer(self, images: U8, masks: U8) -> None:
        if len(images) > self._most:
            raise DeviceMemoryError("no memory for so many")
        self.ran.append(images.shape[:3])
        super().infer(images, masks)


def load(size: Size) -> Loaded:
    return np.zeros((*size, 1), np.uint8), size


def run(engine: JoiningEngine, sizes: list[Size], options: PipelineOptions | None = None) -> None:
    """A task is its number and the size of its image: each is done once."""
    tasks = list(enumerate(sizes))
    found = run_pipeline(
        engine, iter(tasks), lambda task: load(task[1]), lambda task, mask: None, options
    )
    results = list(found)
    assert [result.reason for result in results] == [""] * len(tasks)
    assert sorted(result.task for result in results) == tasks


@pytest.fixture
def engine() -> Iterator[JoiningEngine]:
    with JoiningEngine() as engine:
        yield engine


def batches(engine: JoiningEngine) -> list[int]:
    return [shape[0] for shape in engine.ran]


def test_small_images_share_batches_and_the_last_ones_run_one_by_one(engine: JoiningEngine) -> None:
    run(engine, [SMALL] * 11)
    assert batches(engine) == [4, 4, 1, 1, 1]


def test_large_images_run_one_by_one_at_once(engine: JoiningEngine) -> None:
    run(engine, [LARGE, SMALL, LARGE, SMALL, LARGE])
    assert engine.ran == [(1, *LARGE)] * 3 + [(1, *SMALL)] * 2


def test_a_batch_that_was_asked_for_is_that_of_all_sizes(engine: JoiningEngine) -> None:
    run(engine, [SMALL] * 4 + [LARGE] * 2, PipelineOptions(batch=3))
    assert batches(engine) == [3, 3, 3]


def test_where_many_sizes_wait_one_is_run_after_another(engine: JoiningEngine) -> None:
    """Each change may compile a shape: of three images of 30 sizes, in turn, the sizes stay."""
    sizes = [(4, 2 + index) for index in range(30)] * 3
    run(engine, sizes, PipelineOptions(waiting=60))
    changes = sum(a != b for a, b in itertools.pairwise(engine.ran))
    assert len(engine.ran) == 90
    assert changes < 45


@pytest.mark.parametrize(("most", "expected"), [(3, [2, 2, 2, 2, 1]), (1, [1] * 9)])
def test_for_want_of_memory_batches_are_halved(
    most: int, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with JoiningEngine(most) as engine:
        run(engine, [SMALL] * 9)
        assert batches(engine) == expected
    assert f"from now on {expected[0]} images a batch" in caplog.text
