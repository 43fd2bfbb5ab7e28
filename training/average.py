"""The running average of a network's weights, which wavers less than they do."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .unet import UNet

WARM_UP = 30


class WeightAverage:
    """A network that follows another one: what is scored, kept and exported.

    Exponential moving average of weights and running statistics, with min(decay, steps / (30 +
    steps)): it spans about a thirtieth of the steps so far. Without such a warm-up the first epochs
    would be those of weights that were drawn, not learnt; TensorFlow's (1 + steps) / (10 + steps)
    spans a ninth, and lags in runs of few steps.
    """

    def __init__(self, net: UNet, decay: float) -> None:
        """decay: share of the average that a step keeps, below 1. It begins as `net` is now."""
        self.net = deepcopy(net).requires_grad_(False)
        self.steps = 0
        self._decay = decay
        self._averages, self._counts = _floats_and_counts(self.net)
        self._followed = _floats_and_counts(net)

    def follow(self) -> None:
        """Take in the weights as a step has left them."""
        self.steps += 1
        decay = min(self._decay, self.steps / (WARM_UP + self.steps))
        floats, counts = self._followed
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(self._averages, floats, self.steps)
        for own, count in zip(self._counts, counts, strict=True):
            own.copy_(count)


def _floats_and_counts(net: UNet) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and statistics, and how many batches the normalisations have seen."""
    tensors = [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
