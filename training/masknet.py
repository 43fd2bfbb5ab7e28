"""The whole of inference as one network: uint8 image in, uint8 mask at source size out.

PyTorch prediction, validation and every exported engine run this same graph.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import NO_CLASS


class MaskNet(nn.Module):
    """Wrap a network of (N, C, h, w) → logits into images → masks.

    forward(image, size_like): image uint8 (N, h, w, C); of size_like, uint8 (H, W), only the
    shape is read. Returns uint8 (N, H, W) class indices; or, where the spec's result is "prob",
    uint8 (N, classes, H, W) probabilities, two for a one-class net. An image whose logits, or the
    differences of two of them, are not all finite is NO_CLASS everywhere, so that an overflow is
    never taken for a mask; no true probabilities are, as they add up to 255.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.net = net
        self.spec = spec

    def logits(self, image: Tensor) -> Tensor:
        """uint8 (N, h, w, C) → logits (N, classes, h, w) in the network's dtype."""
        dtype = next(self.net.parameters()).dtype
        # An ONNX graph holds 1/255 in the type that it multiplies: 0.4 % too much in bfloat16.
        exact = torch.float32 if dtype == torch.bfloat16 else dtype
        # TensorRT takes a uint8 input only next to its cast: cast first, transpose after.
        x = image.to(exact).permute(0, 3, 1, 2) * (1 / 255)
        height, width = x.shape[2], x.shape[3]
        padding = [0, _shortfall(width), 0, _shortfall(height)]
        x = F.pad(x, padding, mode="replicate").to(dtype)
        return cast(Tensor, self.net(x))[:, :, :height, :width]

    def forward(self, image: Tensor, size_like: Tensor) -> Tensor:
        logits = self._decisive(self.logits(image))
        height, width = size_like.shape
        finite = _all_finite(logits)[:, None, None]
        if self.spec.result == "prob":
            shares = self._probabilities(logits, (height, width))
            levels = (shares * 255).round()
            return torch.where(finite[:, None], levels, float(NO_CLASS)).to(torch.uint8)
        mask = self._classes(logits, (height, width))
        # uint8 outputs must sit next to a cast from a float type in TensorRT.
        mask = mask.to(logits.dtype)
        return torch.where(finite, mask, float(NO_CLASS)).to(torch.uint8)

    def _classes(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize bilinearly, then decide, as the reference does.

        One and two classes resize one channel: sigmoid(l) > t is l > log(t / (1 - t)).
        """
        classes, threshold = self.spec.classes, self.spec.threshold
        resized = resize_logits(logits, size)
        if classes > 2:
            return resized.argmax(1)
        bound = math.log(threshold / (1 - threshold)) if classes == 1 else 0.0
        return resized[:, 0] > bound

    def _decisive(self, logits: Tensor) -> Tensor:
        """Of two classes l1 - l0: a linear resize keeps its order against 0.

        It may exceed a half-precision float where both logits do not.
        """
        return logits[:, 1:] - logits[:, :1] if self.spec.classes == 2 else logits

    def _probabilities(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, classes, H, W): softmax, which of two logits is the sigmoid of their difference."""
        resized = resize_logits(logits, size)
        if self.spec.classes > 2:
            return resized.softmax(1)
        return torch.cat([torch.sigmoid(-resized), torch.sigmoid(resized)], 1)


def _all_finite(logits: Tensor) -> Tensor:
    """(N,) bool. By a count, which may be infinite.

    ONNX Runtime's `all` took six times as long as the network on a GPU. Cast first: PyTorch 2.11
    cannot export isfinite of half-precision floats.
    """
    wrong = torch.isfinite(logits.float()).logical_not()
    return wrong.to(logits.dtype).sum((1, 2, 3)).bool().logical_not()


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, classes, h, w) → (N, classes, *size), bilinearly from pixel centres, as the reference."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _shortfall(side: int) -> int:
    """Pixels missing to MIN_SIDE; symbolic when the side is dynamic in an export."""
    return cast(int, torch.sym_max(MIN_SIDE - side, 0))  # type: ignore[no-untyped-call]
