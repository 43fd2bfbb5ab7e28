"""The U-Net of milesial/Pytorch-UNet: same parameter names, shapes and count, any width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DoubleConv(nn.Module):
    """Twice (3×3 convolution, batch normalisation, ReLU)."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or outputs
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.double_conv(x))


class Down(nn.Module):
    """Halve height and width, then DoubleConv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.maxpool_conv(x))


class Up(nn.Module):
    """Double height and width, pad to the skip's size, concatenate, then DoubleConv."""

    def __init__(self, inputs: int, outputs: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(inputs, outputs, inputs // 2)
        else:
            self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2)
            self.conv = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return cast(Tensor, self.conv(torch.cat([skip, x], dim=1)))


class OutConv(nn.Module):
    """Features → logits."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class UNet(nn.Module):
    """(N, channels, h, w) float → (N, classes, h, w) logits; h and w of at least 16.

    recompute: in training, keep only what passes between the nine blocks, and compute each block
    again on the way back: less memory, a third more work, the same numbers.
    """

    recompute = False

    def __init__(
        self, channels: int = 3, classes: int = 2, width: int = 64, bilinear: bool = False
    ) -> None:
        super().__init__()
        w, factor = width, 2 if bilinear else 1
        self.inc = DoubleConv(channels, w)
        self.down1 = Down(w, 2 * w)
        self.down2 = Down(2 * w, 4 * w)
        self.down3 = Down(4 * w, 8 * w)
        self.down4 = Down(8 * w, 16 * w // factor)
        self.up1 = Up(16 * w, 8 * w // factor, bilinear)
        self.up2 = Up(8 * w, 4 * w // factor, bilinear)
        self.up3 = Up(4 * w, 2 * w // factor, bilinear)
        self.up4 = Up(2 * w, w, bilinear)
        self.outc = OutConv(w, classes)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self._block(self.inc, x)
        x2 = self._block(self.down1, x1)
        x3 = self._block(self.down2, x2)
        x4 = self._block(self.down3, x3)
        x = self._block(self.down4, x4)
        x = self._block(self.up1, x, x4)
        x = self._block(self.up2, x, x3)
        x = self._block(self.up3, x, x2)
        x = self._block(self.up4, x, x1)
        return cast(Tensor, self.outc(x))

    def _block(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if not (self.recompute and self.training):
            return cast(Tensor, block(*inputs))

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _unfollowed(block)

        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts))


@contextmanager
def _unfollowed(block: nn.Module) -> Iterator[None]:
    """Keep the second pass over one batch out of the running statistics."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(block.buffers(), before, strict=True):
                buffer.copy_(value)
