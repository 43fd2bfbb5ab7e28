"""The pipeline: every task once, bounded memory, one bad image costs itself alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import ThresholdEngine, torch_engine
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, Slot
from unetrt.runtime.pipeline import Loaded, PipelineOptions, run_pipeline

SIZES: list[tuple[Size, Size]] = [
    ((32, 32), (32, 32)),
    ((32, 32), (64, 48)),
    ((48, 33), (48, 33)),
    ((17, 40), (20, 20)),
    ((1, 1), (3, 2)),
]
"""Network sizes and mask sizes: some share the one and differ in the other."""


def load_steel(index: int) -> Loaded:
    (height, width), size = SIZES[index % 7 % len(SIZES)]
    return steel(index, height, width), size


def plain(index: int) -> Loaded:
    return np.full((4, 6, 1), index % 251, np.uint8), (4, 6)


def ignore(task: int, mask: U8) -> None:
    del task, mask


def threads_left(prefixes: tuple[str, ...] = ("load", "write")) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(prefixes)]


def run_all(
    engine: Engine,
    tasks: list[int],
    load: Callable[[int], Loaded],
    options: PipelineOptions | None = None,
) -> tuple[dict[int, U8], dict[int, ImageError | None]]:
    masks: dict[int, U8] = {}
    results = [
        (result.task, result.error)
        for result in run_pipeline(engine, tasks, load, masks.__setitem__, options)
    ]
    assert len(dict(results)) == len(results), "a task twice"
    return masks, dict(results)


def run_alone(engine: Engine, image: U8, size: Size, batch: int) -> U8:
    """The only image of a batch: PyTorch rounds differently in batches of another size."""
    slot = engine.slot()
    slot.reserve(batch, (image.shape[0], image.shape[1]))[0] = image
    slot.submit(1, size)
    mask: U8 = slot.masks()[0].copy()
    slot.close()
    if batch == 1:
        np.testing.assert_array_equal(mask, engine.run(image, size))
    return mask


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("batch", "slots", "waiting"), [(1, 1, 64), (3, 2, 64), (4, 3, 5)])
def test_masks_are_those_of_the_engine_alone(
    batch: int, slots: int, waiting: int, channels: int
) -> None:
    def load(index: int) -> Loaded:
        image, size = load_steel(index)
        return np.repeat(image, channels, axis=2), size

    options = PipelineOptions(batch=batch, slots=slots, load_threads=3, waiting=waiting)
    with torch_engine(balanced_checkpoint(channels=channels)) as engine:
        masks, errors = run_all(engine, list(range(23)), load, options)
        assert errors == dict.fromkeys(range(23))
        assert len(np.unique(np.concatenate([mask.ravel() for mask in masks.values()]))) >= 3
        for index, mask in masks.items():
            np.testing.assert_array_equal(mask, run_alone(engine, *load(index), batch))


def test_the_order_of_the_tasks_changes_no_mask() -> None:
    options = PipelineOptions(batch=3, load_threads=2)
    orders = [list(range(15)), list(reversed(range(15))), [i * 7 % 15 for i in range(15)]]
    with torch_engine(balanced_checkpoint()) as engine:
        runs = [run_all(engine, order, load_steel, options)[0] for order in orders]
    for masks in runs[1:]:
        assert {i: m.tobytes() for i, m in masks.items()} == {
            i: m.tobytes() for i, m in runs[0].items()
        }


def test_a_bad_image_costs_itself_and_its_neighbours_masks_stay() -> None:
    def load(index: int) -> Loaded:
        if index in (0, 4, 9, 13):
            raise ImageError(f"image {index} is damaged", seen="nothing", hint="send it again")
        return load_steel(index)

    options = PipelineOptions(batch=4, load_threads=2)
    with torch_engine(balanced_checkpoint()) as engine:
        whole, _ = run_all(engine, list(range(14)), load_steel, options)
        masks, errors = run_all(engine, list(range(14)), load, options)
    assert [i for i, error in errors.items() if error] == [0, 4, 9, 13]
    assert len(errors) == 14
    assert sorted(masks) == [i for i in range(14) if i not in (0, 4, 9, 13)]
    for index, mask in masks.items():
        assert mask.tobytes() == whole[index].tobytes()


def test_a_reason_names_what_helps(threshold_engine: type[ThresholdEngine]) -> None:
    def load(index: int) -> Loaded:
        raise ImageError("12 bits", seen="4095", hint="--bit-depth 12")

    with threshold_engine() as engine:
        (result,) = run_pipeline(engine, [1], load, ignore)
        (good,) = run_pipeline(engine, [1], plain, ignore)
    assert result.reason == "12 bits (4095); Hint: --bit-depth 12"
    assert good.reason == ""


def test_an_output_that_is_not_finite_is_a_failure_of_that_image() -> None:
    checkpoint = balanced_checkpoint()
    checkpoint.state["inc.double_conv.0.weight"].fill_(3e38)
    with torch_engine(checkpoint, batch=2) as engine:
        bright = np.full((32, 32, 1), 255, np.uint8)
        bright[::2] = 0
        images = {0: bright, 1: np.zeros((32, 32, 1), np.uint8), 2: bright}
        masks, errors = run_all(engine, [0, 1, 2], lambda i: (images[i], (32, 32)))
    assert list(masks) == [1]
    assert "not finite" in str(errors[0])
    assert "not finite" in str(errors[2])
    assert errors[1] is None


class _UnforeseenError(Exception):
    pass


@pytest.mark.parametrize("error", [_UnforeseenError(), UserError("disk full"), MemoryError()])
@pytest.mark.parametrize("where", ["load", "consume"])
@pytest.mark.parametrize("at", [0, 7, 39])
def test_any_other_exception_ends_the_run(
    where: str, at: int, error: Exception, threshold_engine: type[ThresholdEngine]
) -> None:
    def load(index: int) -> Loaded:
        if where == "load" and index == at:
            raise error
        return plain(index)

    def consume(task: int, mask: U8) -> None:
        if where == "consume" and task == at:
            raise error

    options = PipelineOptions(batch=2, slots=2, load_threads=2)
    with threshold_engine() as engine, pytest.raises(type(error)):
        list(run_pipeline(engine, range(40), load, consume, options))
    assert threads_left() == []


def test_an_engine_that_fails_ends_the_run_and_frees_every_slot(
    monkeypatch: pytest.MonkeyPatch, threshold_engine: type[ThresholdEngine]
) -> None:
    closed: list[Slot] = []
    with threshold_engine(slots=3) as engine:
        make = engine.slot

        def slot() -> Slot:
            made = make()
            monkeypatch.setattr(made, "close", lambda: closed.append(made))
            return made

        def infer(images: U8, masks: U8) -> None:
            raise RuntimeError("out of device memory")

        monkeypatch.setattr(engine, "slot", slot)
        monkeypatch.setattr(engine, "infer", infer)
        with pytest.raises(RuntimeError, match="device memory"):
            list(run_pipeline(engine, range(20), plain, ignore))
    assert len(closed) == 3
    assert threads_left() == []


def test_an_interrupt_anywhere_leaves_no_thread(threshold_engine: type[ThresholdEngine]) -> None:
    def interrupted(task: int, mask: U8 | None = None) -> Loaded:
        if task == 9:
            raise KeyboardInterrupt
        return plain(task)

    with threshold_engine() as engine:
        with pytest.raises(KeyboardInterrupt):
            list(run_pipeline(engine, range(40), interrupted, ignore))
        with pytest.raises(KeyboardInterrupt):
            list(run_pipeline(engine, range(40), plain, interrupted))  # type: ignore[arg-type]
        results = run_pipeline(engine, range(40), plain, ignore)
        next(results)
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert threads_left() == []


def test_stopping_early_starts_nothing_new_and_the_engine_serves_on(
    threshold_engine: type[ThresholdEngine],
) -> None:
    loaded: list[int] = []

    def load(index: int) -> Loaded:
        loaded.append(index)
        return plain(index)

    with threshold_engine(batch=3) as engine:
        results = run_pipeline(engine, range(1000), load, ignore, PipelineOptions(load_threads=2))
        next(results)
        results.close()
        count = len(loaded)
        assert count < 60
        time.sleep(0.02)
        assert len(loaded) == count
        masks, _ = run_all(engine, [5, 6], plain)
        assert [int(masks[i][0, 0]) for i in (5, 6)] == [1, 0]
    assert threads_left() == []


def test_nothing_to_do_is_done(threshold_engine: type[ThresholdEngine]) -> None:
    with threshold_engine() as engine:
        assert list(run_pipeline(engine, [], plain, ignore)) == []
    assert threads_left() == []


def test_several_pipelines_share_one_engine() -> None:
    with torch_engine(balanced_checkpoint()) as engine, ThreadPoolExecutor(3) as pool:
        options = PipelineOptions(batch=2, load_threads=1)
        runs = [pool.submit(run_all, engine, list(range(8)), load_steel, options) for _ in range(3)]
        first, *others = [run.result(timeout=60)[0] for run in runs]
        for masks in others:
            assert all(masks[i].tobytes() == first[i].tobytes() for i in first)


@pytest.mark.parametrize(("sizes", "told"), [(40, True), (2, False)])
def test_batches_that_are_mostly_empty_are_told(
    sizes: int,
    told: bool,
    threshold_engine: type[ThresholdEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A size of its own for every image: eight times the work, and nobody would know."""

    def load(index: int) -> Loaded:
        side = 8 + index % sizes
        return np.zeros((side, side, 1), np.uint8), (side, side)

    run_all(threshold_engine(batch=8), list(range(80)), load)
    warned = [text for text in caplog.messages if "--batch" in text]
    assert warned == (
        [
            "batches of 8 held 2.0 images on average, as images of one size are few: "
            "--batch 2 does less work"
        ]
        if told
        else []
    )
