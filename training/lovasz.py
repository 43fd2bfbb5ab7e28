"""The Lovász loss: 1 - IoU of each class, made smooth in the classes' shares.

Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, arXiv:1705.08790.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract.types import NO_CLASS
from .ranks import Ranks


def lovasz_loss(shares: Tensor, truth: Tensor, foreground: bool, ranks: Ranks) -> Tensor:
    """Average over the classes that are true in the batch, a scalar; 0 where none is.

    shares (N, classes, H, W) of each pixel, or (N, 1, H, W) of class 1 alone; truth int64
    (N, H, W), NO_CLASS where a pixel does not count. foreground: leaves class 0 out. The batch is
    that of all ranks.
    """
    shares, truth = shares.movedim(1, 0).flatten(1), truth.flatten()
    if len(shares) == 1:
        classes, shares = range(1, 2), shares.expand(2, -1)
    else:
        classes = range(int(foreground), len(shares))
    every_truth, own = ranks.joined(truth)
    counted = truth != NO_CLASS
    losses, present = [], []
    for value in classes:
        true = truth == value
        errors = torch.where(counted, (true.to(shares.dtype) - shares[value]).abs(), 0)
        every_true = every_truth == value
        weights = _weights(ranks.joined(errors.detach())[0], every_true)[own]
        losses.append((errors * weights).sum())
        present.append(every_true.any())
    there = torch.stack(present).to(shares.dtype)
    return (ranks.total(torch.stack(losses)) * there).sum() / there.sum().clamp(min=1)


def _weights(errors: Tensor, true: Tensor) -> Tensor:
    """By how much 1 - IoU grows when the largest errors become mistakes one after the other.

    errors (M,), true bool (M,) → (M,), theorem 1 of the paper; a pixel without a class is an error
    of 0, which comes last and counts nothing. In float64: a float32 counts to 2^24.
    """
    order = errors.argsort(descending=True, stable=True)
    missed = true[order].cumsum(0)
    false = torch.arange(1, len(order) + 1, device=order.device) - missed
    total = missed[-1]
    loss = 1 - (total - missed).double() / (total + false).double()
    steps = torch.diff(loss, prepend=loss.new_zeros(1)).to(errors.dtype)
    return torch.empty_like(errors).scatter_(0, order, steps)
