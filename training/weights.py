"""What each class weighs in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..contract.cores import usable_cores
from ..contract.spec import ModelSpec
from .ahead import map_ahead
from .losses import LossOptions
from .options import RecipeOptions
from .samples import Sample


def loss_from_recipe(
    recipe: RecipeOptions, spec: ModelSpec, samples: Sequence[Sample]
) -> LossOptions:
    """Weights of "auto" are counted over all of `samples`."""
    weights = recipe.class_weights
    if weights == "auto":
        weights = weights_from_samples(samples, spec.mask_classes)
    return LossOptions(loss=recipe.loss, dice=recipe.dice, weights=weights)


def weights_from_samples(samples: Sequence[Sample], classes: int) -> tuple[float, ...]:
    """1 / √(share of the pixels), scaled so that the mean over all pixels is 1.

    A class that no mask has weighs as much as the heaviest.
    """
    counts = np.zeros(classes, np.int64)
    for found in map_ahead(Sample.class_counts, samples, usable_cores()):
        counts += found
    shares = counts / max(1, counts.sum())
    weights = 1 / np.sqrt(np.where(shares > 0, shares, shares[shares > 0].min(initial=1.0)))
    weights /= max(float((weights * shares).sum()), 1e-12)
    return tuple(round(float(weight), 6) for weight in weights)
