"""Whether all numbers of a network are finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name the first that holds a number that is not finite, None where all are.

    One norm over all of them is 1 % of a step's time or less; names cost more and are rarely asked.
    """
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    if not floating or torch.isfinite(norm_of(floating.values())):
        return None
    # The norm of finite numbers may overflow.
    with torch.no_grad():
        return next((n for n, t in floating.items() if not torch.isfinite(t).all()), None)


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """Of the floating ones among them, on their device: to read it is to wait for it."""
    with torch.no_grad():
        return get_total_norm([tensor for tensor in tensors if tensor.is_floating_point()])
