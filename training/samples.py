"""All pairs read and checked before the first epoch, and held in memory as uint8."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..contract.cores import usable_cores
from ..contract.errors import ImageError
from ..contract.log import log
from ..contract.masks import StoredMask, true_classes
from ..contract.memory import memory_bytes
from ..contract.resize import resize_mask
from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import U8, Size
from .ahead import map_ahead
from .known import Known, state_of
from .options import TrainOptions
from .pairs import (
    Pair,
    Problem,
    is_turned_in_doubt,
    raise_problems,
    read_pair,
    told_of_turns,
)
from .ranks import is_main_process, local_rank, processes_here, progress_of_first
from .split import matched_parts
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
    in_doubt: whether the mask is turned as the image is. counts: pixels of each class in the truth,
    where weights are made of them.
    """

    pair: Pair
    spec: ModelSpec
    input_size: Size
    size: Size
    shrunk: bool = False
    held: Labelled | None = None
    checksum: int = 0
    in_doubt: bool = False
    counts: tuple[int, ...] = ()

    @property
    def held_bytes(self) -> int:
        """Of memory, if it is held."""
        truth = self.input_size if self.shrunk else self.size
        return math.prod(self.input_size) * self.spec.channels + math.prod(truth)

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

    def class_counts(self) -> tuple[int, ...]:
        """Pixels of each class in the truth."""
        if self.counts:
            return self.counts
        classes = self.spec.mask_classes
        return tuple(map(int, np.bincount(self.truth().ravel(), minlength=classes)[:classes]))

    def fitted(self, truth: U8) -> U8:
        """A truth of the file's size as it is held."""
        return resize_mask(truth, self.input_size) if self.shrunk else truth


class _Held:
    """What fits stays in memory; the rest keeps its place on the disk."""

    def __init__(self, room: int) -> None:
        self._room, self.dropped = room, 0

    def fits(self, sample: Sample) -> bool:
        if sample.held_bytes <= self._room:
            self._room -= sample.held_bytes
            return True
        self.dropped += 1
        return False

    def tell(self, known: int) -> None:
        """known: of so many, nothing had to be read."""
        if self.dropped:
            earlier = f"; {known} of them are known from an earlier start" if known else ""
            text = f"{self.dropped} images do not fit into memory and are read in each epoch"
            log.info(text + earlier)


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
    train, validation, problems = matched_parts(options)
    pairs = [*train, *validation]
    memory = half_of_memory() if memory is None else memory
    folders = options.images, options.masks, options.val_images, options.val_masks
    places = [folder and str(folder.absolute()) for folder in folders]
    masks = Known("masks", *places)
    found = spec_from_masks(options, start, train, validation, memory // MASKS_PART, masks)
    shrunk = len(train) if options.recipe.loss_size == "network" else 0
    counted = found.known and options.recipe.class_weights == "auto"
    # Of the network, what changes no pixel, is left out.
    seen = replace(found.spec, width=1, bilinear=False, class_names=())
    known = Known("pairs", *places, seen) if found.known else None
    results, dropped = _read_all(pairs, found, memory, shrunk, counted, known)
    # Of unknown values no reader of a pair speaks: what it says is another problem of the file.
    told = {problem.name for problem in found.problems} if found.known else set()
    problems += found.problems
    problems += [r for r in results if isinstance(r, Problem) and r.name not in told]
    if dropped and local_rank() == 0:
        wrong = {problem.name for problem in problems}
        for cache in (masks, known):
            if cache:
                cache.write(wrong)
    samples = [result for result in results if isinstance(result, Sample)]
    crop, warnings = _crop_problems(options.crop, samples[: len(train)])
    raise_problems(problems + crop, options.out)
    warnings = [*found.warnings, *warnings, *_warnings_of_size(samples, options.scale)]
    turned = [sample.pair for sample in samples if sample.in_doubt]
    warnings += [told_of_turns(turned, len(pairs))] if turned else []
    return TrainingData(found.spec, samples[: len(train)], samples[len(train) :], tuple(warnings))


@dataclass(frozen=True)
class _Task:
    """known: what an earlier start found in the pair; held: it fits into memory, and is read."""

    pair: Pair
    shrunk: bool
    state: str | None = None
    known: Sample | None = None
    held: bool = False


def _read_all(
    pairs: Sequence[Pair],
    found: Found,
    memory: int,
    shrunk: int,
    counted: bool,
    known: Known | None,
) -> tuple[list[Sample | Problem], int]:
    """Return, too, how many do not fit.

    shrunk: of so many, the first, the truth is made as large as the image. counted: samples are to
    have `counts`.
    """
    read = partial(_sample, found=found, counted=counted)
    tasks = [_Task(pair, index < shrunk) for index, pair in enumerate(pairs)]
    results: list[Sample | Problem] = []
    held = _Held(memory)
    if known:
        tasks = _with_known(tasks, found, counted, known, held)
    with progress_of_first("read", len(pairs)) as advance:
        # A few ahead, not all: what does not fit is dropped as soon as it was checked.
        for task, result in zip(tasks, map_ahead(read, tasks, usable_cores()), strict=True):
            if isinstance(result, Sample):
                if known and not task.known:
                    known.put(task.state, task.pair.name, _to_json(result))
                if not task.known and not held.fits(result):
                    result = replace(result, held=None)
            results.append(result)
            advance(1)
    if is_main_process():
        held.tell(sum(task.known is not None and not task.held for task in tasks))
    return results, held.dropped


def _with_known(
    tasks: Sequence[_Task], found: Found, counted: bool, known: Known, held: _Held
) -> list[_Task]:
    """Look for each pair in the cache; what fits into memory is read all the same."""
    states = map_ahead(lambda t: state_of(t.pair.image, t.pair.mask), tasks, usable_cores())
    looked = []
    for task, state in zip(tasks, states, strict=True):
        sample = _from_json(task, found, counted, known.get(state, task.pair.name))
        fits = sample is not None and held.fits(sample)
        looked.append(replace(task, state=state, known=sample, held=fits))
    return looked


def _to_json(sample: Sample) -> Any:
    sizes = [*sample.input_size, *sample.size]
    return [*sizes, sample.checksum, sample.in_doubt, sample.shrunk, sample.counts]


def _from_json(task: _Task, found: Found, counted: bool, stored: Any) -> Sample | None:
    if stored is None:
        return None
    h, w, height, width, checksum, in_doubt, shrunk, counts = stored
    if counted and not (counts and shrunk == task.shrunk):
        return None
    return Sample(
        pair=task.pair,
        spec=found.spec,
        input_size=(h, w),
        size=(height, width),
        shrunk=task.shrunk,
        checksum=checksum,
        in_doubt=in_doubt,
        counts=tuple(counts) if counted else (),
    )


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


def _sample(task: _Task, found: Found, counted: bool) -> Sample | Problem:
    """Return a sample, shrunk or not, or what is wrong."""
    if task.known and not task.held:
        return task.known
    pair, spec = task.pair, found.spec
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
        shrunk=task.shrunk,
        checksum=_checksum(image, truth),
        in_doubt=is_turned_in_doubt(pair, size),
    )
    sample = replace(sample, held=(image, sample.fitted(truth)))
    return replace(sample, counts=sample.class_counts()) if counted else sample


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
