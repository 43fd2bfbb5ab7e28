"""Scores of a network on samples, through the graph that inference runs."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from ..contract.errors import DeviceMemoryError, first_line
from ..contract.log import log
from ..contract.memory import memory_bytes, run_bytes
from ..contract.metrics import ConfusionMatrix
from ..contract.tiles import Grid, cut_to, fewer, run_in_tiles
from ..contract.types import U8, Size
from .ahead import map_ahead
from .masknet import MaskNet
from .memory import PIXEL_BYTES, short_of_memory
from .ranks import Ranks, processes_here, progress_of_first
from .samples import Sample

BATCH_PIXELS = 1 << 20
"""Mask pixels in one batch: enough to keep a processor busy, little memory."""


def validate(
    masknet: MaskNet,
    samples: Sequence[Sample],
    ranks: Ranks | None = None,
    check: Callable[[], None] | None = None,
    workers: int = 0,
) -> ConfusionMatrix:
    """Count every pixel of every mask, at its file's size, in one matrix over all ranks.

    check: called between batches, to stop by raising. workers: threads that read ahead.
    Raises DeviceMemoryError where the memory does not suffice for one image.
    """
    ranks = ranks or Ranks()
    fitting = Fitting(masknet, ranks.is_main)
    matrix = ConfusionMatrix(masknet.spec.mask_classes)
    own, training = ranks.share(samples), masknet.training
    masknet.eval()
    batches = list(_batches(own))
    loaded = map_ahead(Sample.load, (sample for batch in batches for sample in batch), workers)
    with progress_of_first("validate", len(own)) as advance:
        for batch in batches:
            if check is not None:
                check()
            images, truths = zip(*islice(loaded, len(batch)), strict=True)
            predicted = fitting.masks(images, batch[0].size)
            for truth, mask in zip(truths, predicted, strict=True):
                matrix.update(truth, mask)
            advance(len(batch))
    masknet.train(training)
    device = next(masknet.parameters()).device
    matrix.counts = ranks.total(torch.from_numpy(matrix.counts).to(device)).cpu().numpy()
    return matrix


class Fitting:
    """Predicts as many images at once as the memory takes: half as many each time it does not.

    A single image for which it does not suffice is predicted in overlapping tiles.
    """

    def __init__(self, masknet: MaskNet, speaks: bool) -> None:
        self._masknet, self._speaks, self._most = masknet, speaks, 0
        self._on_gpu = next(masknet.parameters()).device.type == "cuda"
        # Linux gives memory that it has not: on a CPU too large an image is not tried.
        self._host = memory_bytes() // 2 // processes_here()
        self._pixels = sys.maxsize

    def masks(self, images: Sequence[U8], size: Size) -> list[U8]:
        done: list[U8] = []
        while len(done) < len(images):
            part = images[len(done) : len(done) + (self._most or len(images))]
            try:
                done += self._predicted(part, size)
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
                self._shrink(part, size, error)
        return done

    def _predicted(self, images: Sequence[U8], size: Size) -> list[U8]:
        grid = self._grid(images[0], size)
        if grid is None:
            return list(masks_from_net(self._masknet, images, size))
        masks = [np.empty(size, np.uint8) for _ in images]
        pairs = zip(images, masks, strict=True)
        return [run_in_tiles(self._run, image, mask, grid) for image, mask in pairs]

    def _run(self, image: U8, size: Size) -> U8:
        mask: U8 = masks_from_net(self._masknet, [image], size)[0]
        return mask

    def _grid(self, image: U8, size: Size) -> Grid | None:
        """How an image is cut; None where it fits, or cannot be cut."""
        spec, input_size = self._masknet.spec, (image.shape[0], image.shape[1])
        if spec.bilinear:
            return None
        most = self._pixels
        if not self._on_gpu:
            taken = run_bytes(spec, PIXEL_BYTES * spec.width, input_size, size)
            most = min(most, self._host * math.prod(input_size) // taken)
        return cut_to(most, input_size, size)

    def _shrink(self, images: Sequence[U8], size: Size, error: Exception) -> None:
        """Fewer images at once, then smaller tiles. DeviceMemoryError: neither is possible."""
        if len(images) > 1:
            self._most = len(images) // 2
            told = f"{self._most} images at once"
        else:
            grid = self._grid(images[0], size)
            pixels = images[0].size // images[0].shape[2] if grid is None else grid.tile_pixels
            for self._pixels in fewer(pixels):
                if self._grid(images[0], size) is not None:
                    break
            else:
                raise self._unfit(error) from error
            told = "in overlapping tiles, with the same masks"
        if self._speaks:
            log.warning(f"out of memory in validation: from here on {told}")
        torch.cuda.empty_cache()

    def _unfit(self, error: Exception) -> DeviceMemoryError:
        where = "the GPU" if self._on_gpu else "this machine"
        return DeviceMemoryError(
            f"a validation image does not fit into the memory of {where}",
            seen=first_line(error),
            hint="a smaller --scale, or smaller validation images",
        )


def masks_from_net(masknet: MaskNet, images: Sequence[U8], size: Size) -> U8:
    """Network inputs (h, w, C) of one shape → masks uint8 (N, *size)."""
    device = next(masknet.parameters()).device
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(images)).to(device)
        size_like = torch.empty(size, dtype=torch.uint8, device=device)
        return np.asarray(masknet(batch, size_like).cpu())


def warn_of_one_class(matrix: ConfusionMatrix, names: Sequence[str]) -> None:
    """Say so when every predicted pixel is of one class and the truth has more."""
    predicted, true = matrix.counts.sum(0), matrix.counts.sum(1)
    if (predicted > 0).sum() != 1 or (true > 0).sum() < 2:
        return
    place = int(predicted.argmax())
    answer = names[place] if place < len(names) else "no class: logits that are not finite"
    shares = zip(names, true / true.sum(), strict=True)
    listed = ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares)
    log.warning(f"every pixel of the validation is predicted as {answer}; the truth has {listed}")


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Put samples of one input size and one mask size together."""
    groups: dict[tuple[Size, Size], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.input_size, sample.size].append(sample)
    for (_, size), group in groups.items():
        count = max(1, BATCH_PIXELS // (size[0] * size[1]))
        yield from (group[start : start + count] for start in range(0, len(group), count))
