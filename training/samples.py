"""All pairs read and checked before the first epoch, and held in memory as uint8."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from ..contract.errors import ImageError, UserError
from ..contract.log import log
from ..contract.masks import class_indices, read_mask
from ..contract.progress import show_progress
from ..contract.resize import resize_mask
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from .ahead import map_ahead
from .options import TrainOptions
from .pairs import Pair, match_pairs, raise_problems, read_pair
from .values import spec_from_masks

Labelled: TypeAlias = tuple[U8, U8]
"""image (h, w, C) and truth (h, w), both of the network's size."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A pair that was read once and is good.

    input_size: of image and truth as the network takes them; size: of the file.
    held: both in memory, or None where they did not fit and are read each time.
    """

    pair: Pair
    spec: ModelSpec
    input_size: Size
    size: Size
    bit_depth: int | None = None
    held: Labelled | None = None

    def load(self) -> Labelled:
        """Give image uint8 (h, w, C) and truth uint8 (h, w) of `input_size`."""
        return self.held or _read(self.pair, self.spec, self.bit_depth)[0]

    def full_truth(self) -> U8:
        """Class indices (H, W) at the file's own size, read again unless it is the network's."""
        if self.input_size == self.size:
            return self.load()[1]
        return class_indices(read_mask(self.pair.mask), self.spec, self.pair.mask)


class _Held:
    """What fits stays in memory; the rest keeps its place on the disk."""

    def __init__(self, room: int) -> None:
        self._room, self._dropped = room, 0

    def kept(self, sample: Sample) -> Sample:
        size = sum(array.nbytes for array in sample.held or ())
        if size <= self._room:
            self._room -= size
            return sample
        self._dropped += 1
        return replace(sample, held=None)

    def tell(self) -> None:
        if self._dropped:
            log.info(f"{self._dropped} images do not fit into memory and are read in each epoch")


@dataclass(frozen=True)
class TrainingData:
    spec: ModelSpec
    train: list[Sample]
    validation: list[Sample]


def load_training_data(
    options: TrainOptions, start: ModelSpec | None, *, memory: int | None = None
) -> TrainingData:
    """Read every pair; `start` is the spec of the checkpoint to start from.

    What fits into `memory` bytes (half of the machine's, unless it is given) stays there.
    Raises one UserError that lists every problem of every file.
    """
    train, validation, problems = _matched(options)
    spec, value_problems = spec_from_masks(options, start, [*train, *validation])
    pairs = [*train, *validation]
    read = partial(_sample, spec=spec, bit_depth=options.bit_depth, known=not value_problems)
    results: list[Sample | str] = []
    held = _Held(half_of_memory() if memory is None else memory)
    with show_progress("read", len(pairs)) as advance:
        # A few ahead, not all: what does not fit is dropped as soon as it was checked.
        for result in map_ahead(read, pairs, os.cpu_count() or 1):
            results.append(result if isinstance(result, str) else held.kept(result))
            advance(1)
    problems += [result for result in results if isinstance(result, str)]
    raise_problems(problems + value_problems)
    held.tell()
    samples = [result for result in results if isinstance(result, Sample)]
    return TrainingData(spec, samples[: len(train)], samples[len(train) :])


def _matched(options: TrainOptions) -> tuple[list[Pair], list[Pair], list[str]]:
    """Pairs to train on, pairs to score on, and what does not match."""
    pairs, problems = match_pairs(options.images, options.masks)
    if options.val_images is None or options.val_masks is None:
        if problems:
            return pairs, [], problems
        return *_split(pairs, options.validation, options.seed), problems
    val_pairs, val_problems = match_pairs(options.val_images, options.val_masks)
    return pairs, val_pairs, problems + val_problems


def _split(pairs: list[Pair], percent: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Keep `percent` of the pairs back, drawn by `seed`; UserError when that is none or all."""
    count = int(len(pairs) * percent / 100)
    if not 0 < count < len(pairs):
        needed = max(2, math.ceil(100 / percent))
        raise UserError(
            f"too few images to keep {percent:g} % back for validation",
            seen=f"{len(pairs)} pairs",
            expected=f"at least {needed}",
            hint="a higher --validation, or --val-images DIR --val-masks DIR",
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    kept, back = sorted(order[count:]), sorted(order[:count])
    return [pairs[i] for i in kept], [pairs[i] for i in back]


def _sample(pair: Pair, spec: ModelSpec, bit_depth: int | None, known: bool) -> Sample | str:
    """Return a sample, or what is wrong; `known`: the spec's mask values are those of the masks."""
    try:
        held, size = _read(pair, spec, bit_depth, known)
    except ImageError as error:
        expected = f", expected {error.expected}" if error.expected is not None else ""
        return error.reason + expected
    shape = held[1].shape[0], held[1].shape[1]
    return Sample(pair=pair, spec=spec, input_size=shape, size=size, bit_depth=bit_depth, held=held)


def _read(
    pair: Pair, spec: ModelSpec, bit_depth: int | None, known: bool = True
) -> tuple[Labelled, Size]:
    image, size, pixels = read_pair(pair, spec, bit_depth)
    truth = class_indices(pixels, spec, pair.mask) if known else pixels
    return (image, resize_mask(truth, spec.input_size(size))), size


def half_of_memory() -> int:
    """Bytes of half the machine's memory, or of what its container may take; 4 GiB if unknown."""
    if not hasattr(os, "sysconf"):
        return 4 << 30
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(text) if text.isdigit() else total) // 2
