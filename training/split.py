"""Which pairs are trained on, and which are kept back to score on."""

from __future__ import annotations

import math

import torch

from .options import TrainOptions
from .pairs import Pair, Problem, match_pairs


def matched_parts(options: TrainOptions) -> tuple[list[Pair], list[Pair], list[Problem]]:
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
