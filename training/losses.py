"""What training makes small: cross-entropy plus Dice, over the pixels that have a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract.types import NO_CLASS
from .masknet import resize_logits
from .options import Dice, Loss
from .ranks import Ranks

EPSILON = 1e-6
FOCAL_GAMMA = 2.0
"""The power by which the focal loss turns away from pixels that are right already."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """dice: "all" is the reference's rule, "foreground" its mean over classes above 0.

    weights: of each class in the entropy (two of a one-class net), none for equal ones.
    """

    loss: Loss = "ce+dice"
    dice: Dice = "all"
    weights: tuple[float, ...] = ()


def segmentation_loss(
    logits: Tensor, truth: Tensor, options: LossOptions, ranks: Ranks | None = None
) -> Tensor:
    """Entropy (binary for one logit) plus a Dice loss, a scalar, in fp32 at least.

    logits (N, classes, h, w); truth int64 (N, H, W), NO_CLASS where a pixel does not count. Logits
    of another size than the truth's are resized to it as in prediction.
    A batch without any counted pixel has an entropy of 0. Sums go over the batches of all ranks.
    """
    ranks = ranks or Ranks()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    height, width = truth.shape[1:]
    if logits.shape[2:] != (height, width):
        logits = resize_logits(logits, (height, width))
    counted = truth != NO_CLASS
    truth = torch.where(counted, truth, 0)
    if logits.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits[:, 0], truth.float(), reduction="none")
        sums = _binary_sums(logits.sigmoid()[:, 0], truth, counted)
    else:
        logs = logits.log_softmax(1)
        entropy = -logs.gather(1, truth[:, None])[:, 0]
        sums = _class_sums(logs.exp(), truth, counted)
    foreground = options.dice == "foreground" and logits.shape[1] > 1
    dice = _dice_of_foreground if foreground else _dice_of_all
    return _mean(entropy, truth, counted, options, ranks) + 1 - dice(ranks.total(sums))


def _class_sums(shares: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """(3, classes): shares (N, classes, H, W) where the class is true, all shares, true pixels.

    By gathering: a one-hot truth of int64 would be as large as all logits twice. In float64:
    pixels are added one by one here, and in float32 no count goes above 2^24.
    """
    weights = counted.to(shares.dtype)
    hits = shares.gather(1, truth[:, None])[:, 0] * weights
    sums = shares.new_zeros(2, shares.shape[1], dtype=torch.float64)
    pixels = torch.stack([hits, weights]).flatten(1).double()
    common, true = sums.index_add(1, truth.flatten(), pixels).to(shares.dtype)
    return torch.stack([common, (shares * weights[:, None]).sum((0, 2, 3)), true])


def _binary_sums(shares: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """(3, 1): as _class_sums, of the object alone; shares (N, H, W)."""
    weights = counted.to(shares.dtype)
    true = truth * weights
    return torch.stack([(shares * true).sum(), (shares * weights).sum(), true.sum()])[:, None]


def _mean(
    entropy: Tensor, truth: Tensor, counted: Tensor, options: LossOptions, ranks: Ranks
) -> Tensor:
    """Average the pixels' entropies, each weighted by its class."""
    weights = counted.to(entropy.dtype)
    if options.weights:
        weights = weights * entropy.new_tensor(options.weights)[truth]
    if options.loss == "focal+dice":
        entropy = entropy * (1 - torch.exp(-entropy)) ** FOCAL_GAMMA
    total, weight = ranks.total(torch.stack([(entropy * weights).sum(), weights.sum()])).unbind()
    return total / torch.where(weight > 0, weight, 1.0)


def _dice_of_all(sums: Tensor) -> Tensor:
    """Count every class (background too) and image of the batch together, in one ratio."""
    common, predicted, true = sums.sum(1).unbind()
    return (2 * common + EPSILON) / (predicted + true + EPSILON)


def _dice_of_foreground(sums: Tensor) -> Tensor:
    """Average the Dice of the classes above 0 that the batch has, each over the whole batch."""
    return mean_dice(sums[:, 1:], sums[2, 1:] > 0)


def mean_dice(sums: Tensor, present: Tensor) -> Tensor:
    """Average the Dice of the present classes, 1 where none is.

    sums (3, classes): what both say, what is predicted, what is true; present bool (classes,).
    """
    common, predicted, true = sums.unbind()
    if not present.any():
        return torch.ones((), device=sums.device)
    return ((2 * common + EPSILON) / (predicted + true + EPSILON))[present].mean()
