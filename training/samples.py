"""All pairs read and checked before the first epoch, and held in memory as uint8."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch

from ..contract.cores import usable_cores
from ..contract.errors import ImageError
from ..contract.log import log
from ..contract.masks import StoredMask, true_classes
from ..contract.memory import memory_bytes
from ..contract.resize import resize_mask
from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import U8, Size
from .ahead import map_ahead
from .options import TrainOptions
from .pairs import (
    Pair,
    Problem,
    is_turned_in_doubt,
    match_pairs,
    raise_problems,
    read_pair,
    told_of_turns,
)
from .ranks import is_main_process, processes_here, progress_of_first
from .values import Found, spec_from_masks

Labelled: TypeAlias = tuple[U8, U8]
"""image (h, w, C) of the network's size and truth (H, W) of the file's, or of the image's."""


MASKS_PART = 4
"""One part in so many of the images' memory is for masks that were read before the images."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A pair that was read once and is good.

    input_size: of the image as the network takes it; size: of the file. shrunk: the truth is made
    as large as the image by its nearest pixels, when it is read. held: both in memory, or None
    where they did not fit and are read each time. checksum: of image and truth as they were read.
    in_doubt: whether the mask is turned as the image is.
    """

    pair: Pair
    spec: ModelSpec
    input_size: Size
    size: Size
    shrunk: bool = False
    held: Labelled | None = None
    checksum: int = 0
    in_doubt: bool = False

    def load(self) -> Labelled:
        """Give image uint8 (h, w, C) of `input_size` and truth uint8 of that size, or of `size`.

        Raises ImageError where the files are no longer those that were read once.
        """
        if self.held:
            return self.held
        (image, truth), size = _read(self.pair, self.spec)
        if (size, _checksum(image, truth)) != (self.size, self.checksum):
            raise ImageError(
                f"{self.pair.image} or its mask has changed since the run began",
                seen="another size" if size != self.size else "other pixels",
                expected="what was read before the first step",
            )
        return image, self.fitted(truth)

    def truth(self) -> U8:
        """As load gives it; of what is not held the mask alone is read."""
        return self.held[1] if self.held else self.fitted(true_classes(self.pair.mask, self.spec))

    def fitted(self, truth: U8) -> U8:
        """A truth of the file's size as it is held."""
        return resize_mask(truth, self.input_size) if self.shrunk else truth


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
    """warnings: of what can be trained on, but will not be learnt well."""

    spec: ModelSpec
    train: list[Sample]
    validation: list[Sample]
    warnings: tuple[str, ...] = ()


def load_training_data(
    options: TrainOptions, start: ModelSpec | None, *, memory: int | None = None
) -> TrainingData:
    """Read every pair; `start` is the spec of the checkpoint to start from.

    What fits into `memory` bytes (half of the machine's, unless it is given) stays there.
    Raises one UserError that lists every problem of every file.
    """
    train, validation, problems = _matched(options)
    pairs = [*train, *validation]
    memory = half_of_memory() if memory is None else memory
    found = spec_from_masks(options, start, train, validation, memory // MASKS_PART)
    shrunk = len(train) if options.recipe.loss_size == "network" else 0
    results = _read_all(pairs, found, memory, shrunk)
    # Of unknown values no reader of a pair speaks: what it says is another problem of the file.
    told = {problem.name for problem in found.problems} if found.known else set()
    problems += found.problems
    problems += [r for r in results if isinstance(r, Problem) and r.name not in told]
    samples = [result for result in results if isinstance(result, Sample)]
    crop, warnings = _crop_problems(options.crop, samples[: len(train)])
    raise_problems(problems + crop, options.out)
    warnings = [*found.warnings, *warnings, *_warnings_of_size(samples, options.scale)]
    turned = [sample.pair for sample in samples if sample.in_doubt]
    warnings += [told_of_turns(turned, len(pairs))] if turned else []
    return TrainingData(found.spec, samples[: len(train)], samples[len(train) :], tuple(warnings))


def _read_all(
    pairs: Sequence[Pair], found: Found, memory: int, shrunk: int
) -> list[Sample | Problem]:
    """shrunk: of so many, the first, the truth is made as large as the image."""
    read = partial(_sample, found=found)
    tasks = [(pair, index < shrunk) for index, pair in enumerate(pairs)]
    results: list[Sample | Problem] = []
    held = _Held(memory)
    with progress_of_first("read", len(pairs)) as advance:
        # A few ahead, not all: what does not fit is dropped as soon as it was checked.
        for result in map_ahead(read, tasks, usable_cores()):
            results.append(held.kept(result) if isinstance(result, Sample) else result)
            advance(1)
    if is_main_process():
        held.tell()
    return results


def _matched(options: TrainOptions) -> tuple[list[Pair], list[Pair], list[Problem]]:
    """Pairs to train on, pairs to score on, and what does not match."""
    pairs, problems = match_pairs(options.images, options.masks)
    if options.val_images is None or options.val_masks is None:
        count = int(len(pairs) * options.validation / 100)
        if not 0 < count < len(pairs):
            return pairs, [], [*problems, _too_few(len(pairs), options.validation)]
        return *_split(pairs, count, options.seed), problems
    val_pairs, val_problems = match_pairs(options.val_images, options.val_masks)
    return pairs, val_pairs, problems + val_problems


def _too_few(count: int, percent: float) -> Problem:
    needed = max(2, math.ceil(100 / percent))
    few = f"too few images to keep {percent:g} % back for validation"
    remedy = "a higher --validation, or --val-images DIR --val-masks DIR"
    return Problem("", f"{few}: {count} pairs, expected at least {needed}; {remedy}")


def _split(pairs: list[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Keep `count` of the pairs back, drawn by `seed`."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    kept, back = sorted(order[count:]), sorted(order[:count])
    return [pairs[i] for i in kept], [pairs[i] for i in back]


def _crop_problems(crop: int | None, train: Sequence[Sample]) -> tuple[list[Problem], list[str]]:
    """An error where no image reaches the square in any direction, a warning where most do not."""
    largest = max((max(sample.input_size) for sample in train), default=crop or 0)
    if crop is None or not train:
        return [], []
    if crop > largest:
        large = f"--crop {crop} is larger than every image"
        seen = f"at --scale they have up to {largest} pixels a side"
        return [Problem("", f"{large}: {seen}; a smaller --crop, or none")], []
    short = sum(crop > min(sample.input_size) for sample in train)
    text = f"{short} of {len(train)} images are smaller than --crop {crop} and are padded to it"
    return [], [text] if 2 * short > len(train) else []


def _warnings_of_size(samples: Sequence[Sample], scale: float) -> list[str]:
    small = [sample for sample in samples if min(sample.input_size) < MIN_SIDE]
    if not small:
        return []
    height, width = min((sample.input_size for sample in small), key=min)
    few = f"{len(small)} of {len(samples)} images have a side of less than {MIN_SIDE} pixels"
    seen = f"at --scale {scale:g}, as {height}×{width}"
    return [f"{few} {seen}: they are padded to as many, and show the network little"]


def _sample(task: tuple[Pair, bool], found: Found) -> Sample | Problem:
    """Return a sample, shrunk or not, or what is wrong."""
    (pair, shrunk), spec = task, found.spec
    try:
        held, size = _read(pair, spec, found.known, found.decoded.pop(pair.mask, None))
    except ImageError as error:
        expected = f", expected {error.expected}" if error.expected is not None else ""
        hint = f"; {error.hint}" if error.hint else ""
        return Problem(pair.name, error.reason + expected + hint)
    if min(int(spec.scale * side) for side in size) < 1:
        seen = f"{pair.image} of {size[0]}×{size[1]} pixels has none at --scale {spec.scale:g}"
        return Problem(pair.name, seen, "a larger --scale")
    image, truth = held
    sample = Sample(
        pair=pair,
        spec=spec,
        input_size=(image.shape[0], image.shape[1]),
        size=size,
        shrunk=shrunk,
        checksum=_checksum(image, truth),
        in_doubt=is_turned_in_doubt(pair, size),
    )
    return replace(sample, held=(image, sample.fitted(truth)))


def _checksum(image: U8, truth: U8) -> int:
    return zlib.crc32(truth.tobytes(), zlib.crc32(image.tobytes()))


def _read(
    pair: Pair,
    spec: ModelSpec,
    known: bool = True,
    decoded: StoredMask | None = None,
) -> tuple[Labelled, Size]:
    """known: the spec's mask values are those of the masks. decoded: the mask, if it was read."""
    image, size, mask = read_pair(pair, spec, mask=decoded)
    return (image, mask.classes(spec) if known else mask.pixels), size


def half_of_memory() -> int:
    """Bytes of half of it: each process of a machine holds the images for itself."""
    return memory_bytes() // 2 // processes_here()
