"""What training makes small: cross-entropy plus Dice, over the pixels that have a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract.types import NO_CLASS
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

    logits (N, classes, h, w); truth int64 (N, h, w), NO_CLASS where a pixel does not count.
    A batch without any counted pixel has an entropy of 0. Sums go over the batches of all ranks.
    """
    ranks = ranks or Ranks()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counted = truth != NO_CLASS
    truth = torch.where(counted, truth, 0)
    if logits.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits[:, 0], truth.float(), reduction="none")
        shares, hot = logits.sigmoid(), truth[:, None]
    else:
        entropy = F.cross_entropy(logits, truth, reduction="none")
        shares, hot = logits.softmax(1), F.one_hot(truth, logits.shape[1]).permute(0, 3, 1, 2)
    shares = shares * counted[:, None]
    hot = (hot * counted[:, None]).to(shares.dtype)
    foreground = options.dice == "foreground" and logits.shape[1] > 1
    dice = _dice_of_foreground if foreground else _dice_of_all
    return _mean(entropy, truth, counted, options, ranks) + 1 - dice(shares, hot, ranks)


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


def _dice_of_all(shares: Tensor, truth: Tensor, ranks: Ranks) -> Tensor:
    """Count every class (background too) and image of the batch together, in one ratio."""
    sums = torch.stack([2 * (shares * truth).sum(), shares.sum() + truth.sum()])
    common, whole = ranks.total(sums).unbind()
    return (common + EPSILON) / (whole + EPSILON)


def _dice_of_foreground(shares: Tensor, truth: Tensor, ranks: Ranks) -> Tensor:
    """Average the Dice of the classes above 0 that the batch has, each over the whole batch."""
    axes = (0, 2, 3)
    common, whole, true = (shares * truth).sum(axes), (shares + truth).sum(axes), truth.sum(axes)
    common, whole, true = ranks.total(torch.stack([2 * common, whole, true]))[:, 1:].unbind()
    present = true > 0
    if not present.any():
        return torch.ones((), device=shares.device)
    return ((common + EPSILON) / (whole + EPSILON))[present].mean()
