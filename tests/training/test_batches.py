from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS
from unetrt.training.batches import Batch, Batches, BatchOptions
from unetrt.training.pairs import Pair
from unetrt.training.ranks import Ranks
from unetrt.training.samples import Sample


def sample(number: int, height: int, width: int) -> Sample:
    """Each pixel of the truth is the image's value there: what moves together stays equal."""
    pixels = np.random.default_rng(number).integers(0, 200, (height, width), np.uint8)
    pair = Pair(str(number), Path(f"{number}.png"), Path(f"{number}.png"))
    size = height, width
    held = pixels[:, :, None], pixels
    spec = ModelSpec(channels=1, scale=1.0)
    return Sample(pair=pair, spec=spec, input_size=size, size=size, held=held)


SIZES = [(16, 20)] * 5 + [(32, 32)] * 4 + [(40, 17)]


def batches(
    size: int,
    *,
    crop: int | None = None,
    augment: bool = False,
    seed: int = 0,
    workers: int = 0,
    ranks: Ranks | None = None,
) -> Batches:
    samples = [sample(i, *size) for i, size in enumerate(SIZES)]
    options = BatchOptions(size=size, crop=crop, augment=augment, seed=seed, workers=workers)
    return Batches(samples, options, ranks)


@settings(deadline=None)
@given(st.integers(1, 12))
def test_an_epoch_has_each_image_once_in_batches_of_one_size(batch_size: int) -> None:
    source = batches(batch_size)
    epoch = list(source.epoch(0))
    assert len(epoch) == len(source)
    counts = Counter(pair.name for batch in epoch for pair in batch.pairs)
    added = counts - Counter(str(i) for i in range(len(SIZES)))
    assert set(counts) == {str(i) for i in range(len(SIZES))}
    assert {SIZES[int(name)] for name in added} <= {(16, 20)}, "for batch normalisation alone"
    assert added.total() == (5 if batch_size == 1 else 5 % batch_size == 1)
    for batch in epoch:
        assert batch.images.shape[:3] == batch.truth.shape
        assert batch.images.dtype == torch.uint8
        assert batch.truth.dtype == torch.uint8
        assert torch.equal(batch.images[..., 0], batch.truth)


def test_a_small_image_alone_has_another_beside_it_for_batch_normalisation() -> None:
    """Twice the same would be one value a channel at the bottom: its variance is none."""
    for batch in batches(1).epoch(0):
        height, width = batch.truth.shape[1:]
        names = {pair.name for pair in batch.pairs}
        assert len(batch.images) == len(names) == (2 if height < 32 and width < 32 else 1)
    alone = Batches([sample(0, 16, 16)], BatchOptions())
    assert [len(batch.images) for batch in alone.epoch(0)] == [2]


def halved(number: int, height: int, width: int) -> Sample:
    """An image at half the size of its truth, which it shows."""
    fine = np.random.default_rng(number).integers(0, 200, (height // 2, width // 2), np.uint8)
    truth = fine.repeat(2, 0).repeat(2, 1)
    pair = Pair(str(number), Path(f"{number}.png"), Path(f"{number}.png"))
    return Sample(
        pair=pair,
        spec=ModelSpec(channels=1, scale=0.5),
        input_size=(height // 2, width // 2),
        size=(height, width),
        held=(fine[:, :, None], truth),
    )


def shrunk(sample: Sample) -> Sample:
    image, truth = sample.load()
    small = replace(sample, shrunk=True)
    return replace(small, held=(image, small.fitted(truth)))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("crop", [None, 24])
def test_the_truth_keeps_the_size_of_its_file_where_it_shall(
    crop: int | None, augment: bool
) -> None:
    samples = [halved(i, 64, 80) for i in range(4)] + [halved(4, 66, 80)]
    options = BatchOptions(size=2, crop=crop, augment=augment)
    for batch in Batches(samples, options).epoch(0):
        height, width = batch.images.shape[1:3]
        assert batch.truth.shape[1:] == (2 * height, 2 * width)
        if not augment:
            fine = batch.images[..., 0].repeat_interleave(2, 1).repeat_interleave(2, 2)
            counted = batch.truth != NO_CLASS
            assert torch.equal(fine[counted], batch.truth[counted])
    small = Batches([shrunk(sample) for sample in samples], options)
    assert all(b.truth.shape == b.images.shape[:3] for b in small.epoch(0))


def test_truths_of_two_sizes_share_no_batch() -> None:
    """201 and 200 pixels are 100 at half the scale."""
    odd = replace(
        halved(0, 64, 80),
        size=(65, 80),
        held=(halved(0, 64, 80).load()[0], np.zeros((65, 80), np.uint8)),
    )
    source = Batches([odd, halved(1, 64, 80)], BatchOptions(size=2))
    assert sorted(batch.truth.shape[1] for batch in source.epoch(0)) == [64, 65]


def test_order_follows_the_seed_and_changes_from_epoch_to_epoch() -> None:
    def order(source: Batches, epoch: int) -> list[str]:
        return [pair.name for batch in source.epoch(epoch) for pair in batch.pairs]

    first, again = batches(3, seed=5), batches(3, seed=5)
    assert order(first, 0) == order(again, 0)
    assert order(first, 1) == order(again, 1) != order(again, 0)
    assert order(batches(3, seed=6), 0) != order(first, 0)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.truth, b.truth) and a.pairs == b.pairs
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("crop", [None, 24])
def test_an_epoch_is_the_same_from_any_batch_on_and_by_any_threads(crop: int | None) -> None:
    whole = list(batches(2, crop=crop, augment=True).epoch(3))
    for start in (0, 1, len(whole)):
        for workers in (0, 1, 3):
            source = batches(2, crop=crop, augment=True, workers=workers)
            assert equal(list(source.epoch(3, start)), whole[start:])
    assert not equal(list(batches(2, crop=crop, augment=True).epoch(4)), whole)


def test_processes_share_each_batch_image_by_image() -> None:
    whole = list(batches(4, crop=24, augment=True).epoch(0))
    shares = [list(batches(4, crop=24, augment=True, ranks=Ranks(r, 2)).epoch(0)) for r in range(2)]
    for batch, even, odd in zip(whole, *shares, strict=True):
        for part, images in enumerate((even, odd)):
            assert torch.equal(images.images, batch.images[part::2])
            assert torch.equal(images.truth, batch.truth[part::2])


def test_no_process_is_without_an_image() -> None:
    for rank in range(4):
        source = batches(3, crop=24, ranks=Ranks(rank, 4))
        assert all(len(batch.pairs) >= 1 for batch in source.epoch(0))


def test_a_batch_above_the_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arrays: object) -> None:
        raise MemoryError

    monkeypatch.setattr("unetrt.training.batches.np.stack", full)
    with pytest.raises(UserError, match="does not fit into the machine's memory") as caught:
        next(batches(4, crop=24).epoch(0))
    assert caught.value.seen == "4 images of 24×24 pixels"


def test_crops_mix_sizes_and_pad_without_a_class() -> None:
    source = batches(10, crop=24)
    [batch] = source.epoch(0)
    assert batch.images.shape == (10, 24, 24, 1)
    counted = batch.truth != NO_CLASS
    assert torch.equal(batch.images[..., 0][counted], batch.truth[counted])
    areas = {p.name: int(c.sum()) for p, c in zip(batch.pairs, counted, strict=True)}
    assert areas["0"] == 16 * 20
    assert areas["5"] == 24 * 24
    assert areas["9"] == 24 * 17
