"""Samples → shuffled batches of one size each."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..contract.cores import usable_cores
from ..contract.errors import DeviceMemoryError
from ..contract.spec import MIN_SIDE
from ..contract.types import U8, Size
from .ahead import map_ahead
from .augment import draw_scale, random_brightness_contrast, random_flip_turn, random_resized_crop
from .options import TrainOptions
from .pairs import Pair
from .ranks import Ranks
from .samples import Sample

MOST_WORKERS = 4


@dataclass(frozen=True)
class Batch:
    """images uint8 (N, h, w, C), truth uint8 (N, H, W), and the files that they came from.

    H and W are h and w, or those of the files, as the samples have their truths.
    """

    images: Tensor
    truth: Tensor
    pairs: list[Pair]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """size: images in a batch, over all processes. crop: side of random squares.

    workers: threads that make batches ahead of the step; 0 makes each when it is needed.
    pinned: in memory that a GPU copies from while it computes.
    """

    size: int = 1
    crop: int | None = None
    augment: bool = False
    seed: int = 0
    workers: int = 0
    pinned: bool = False


def batch_options(options: TrainOptions, device: torch.device) -> BatchOptions:
    """One core is left to the step, and a GPU copies from pinned memory."""
    workers = options.workers
    return BatchOptions(
        size=options.recipe.batch_size,
        crop=options.crop,
        augment=options.recipe.augment,
        seed=options.seed,
        workers=min(MOST_WORKERS, usable_cores() - 1) if workers is None else workers,
        pinned=device.type == "cuda",
    )


class Batches:
    """One pass over the samples per epoch.

    The order follows from (seed, epoch) and every random change from (seed, epoch, batch, place
    in it): an epoch can start at any batch, in any process, and is the same each time.
    Images of different sizes never share a batch, unless `crop` makes them squares.
    """

    def __init__(
        self, samples: Sequence[Sample], options: BatchOptions, ranks: Ranks | None = None
    ) -> None:
        self._samples = samples
        self._options = options
        self._ranks = ranks or Ranks()
        self._buckets: dict[tuple[Size, Size], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            self._buckets[self._sizes(sample)].append(index)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(bucket) // self._options.size) for bucket in self._buckets.values())

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Give the batches of epoch `number` from the one at `start` on."""
        order = self._order(number)
        tasks = [(number, place, order[place]) for place in range(start, len(order))]
        return map_ahead(self._batch, tasks, self._options.workers)

    def _order(self, number: int) -> list[list[int]]:
        rng = np.random.default_rng((self._options.seed, number))
        count = self._options.size
        batches: list[list[int]] = []
        for (size, _), bucket in self._buckets.items():
            order = rng.permutation(bucket).tolist()
            starts = range(0, len(order), count)
            batches += [self._enough(order[i : i + count], order, size) for i in starts]
        return [batches[place] for place in rng.permutation(len(batches))]

    def _enough(self, indices: list[int], order: list[int], size: Size) -> list[int]:
        """Add images for batch normalisation, and for processes that would have none.

        It needs two values a channel, at the bottom of the net too; those of one image twice are
        one value. Only where the bucket has no others an image is there twice.
        """
        height, width = (max(MIN_SIDE, side) // 16 for side in size)
        least = max(self._ranks.world, 2 if height * width == 1 else 1)
        others = itertools.cycle([i for i in order if i not in indices] or indices)
        return indices + list(itertools.islice(others, max(0, least - len(indices))))

    def _sizes(self, sample: Sample) -> tuple[Size, Size]:
        """(h, w) of an image and (H, W) of its truth, as a batch has them."""
        crop, scale = self._options.crop, sample.spec.scale
        size = (crop, crop) if crop else sample.input_size
        if sample.shrunk:
            return size, size
        return size, (round(crop / scale), round(crop / scale)) if crop else sample.size

    def _batch(self, task: tuple[int, int, list[int]]) -> Batch:
        number, place, indices = task
        chosen = self._ranks.share(list(enumerate(indices)))
        arrays = [self._changed(self._samples[i], (number, place, slot)) for slot, i in chosen]
        try:
            images = torch.from_numpy(np.stack([image for image, _ in arrays]))
            truth = torch.from_numpy(np.stack([truth for _, truth in arrays]))
        except MemoryError as error:
            raise _too_large(len(chosen), arrays[0][0].shape) from error
        if self._options.pinned:
            images, truth = images.pin_memory(), truth.pin_memory()
        return Batch(images, truth, [self._samples[i].pair for _, i in chosen])

    def _changed(self, sample: Sample, key: tuple[int, int, int]) -> tuple[U8, U8]:
        crop, augment = self._options.crop, self._options.augment
        image, truth = sample.load()
        if not crop and not augment:
            return image, truth
        rng = np.random.default_rng((self._options.seed, *key))
        sizes = self._sizes(sample)
        height, width = sizes[0]
        scale = draw_scale(rng) if augment else 1.0
        window = max(1, round(height / scale)), max(1, round(width / scale))
        image, truth = random_resized_crop(image, truth, window, sizes, rng)
        if augment:
            image, truth = random_flip_turn(image, truth, rng)
            image = random_brightness_contrast(image, rng)
        return image, truth


def _too_large(count: int, shape: tuple[int, ...]) -> DeviceMemoryError:
    return DeviceMemoryError(
        "a batch does not fit into the machine's memory",
        seen=f"{count} images of {shape[0]}×{shape[1]} pixels",
        hint="a smaller --batch-size, --crop or --scale, or fewer --workers",
    )
