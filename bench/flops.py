"""The network's arithmetic, counted from its spec: what TFLOP/s are made of."""

from __future__ import annotations

from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import Size

LEVELS = 4
"""Poolings of the U-Net."""


def count_flops(spec: ModelSpec, size: Size) -> int:
    """Floating-point operations of one image at network size (h, w); a multiply-add is two.

    Convolutions and transposed convolutions only, as everyone counts: what they are followed by
    (bias, activation, pooling, the resize of the logits) is below 1 % of them.
    """
    sizes = _level_sizes(size)
    width, factor = spec.width, 2 if spec.bilinear else 1
    total = _double_conv(spec.channels, width, width, sizes[0])
    for level in range(1, LEVELS + 1):
        inputs = width << (level - 1)
        outputs = 2 * inputs // (factor if level == LEVELS else 1)
        total += _double_conv(inputs, outputs, outputs, sizes[level])
    for level in range(LEVELS - 1, -1, -1):
        inputs = 2 * width << level
        outputs = width if level == 0 else (width << level) // factor
        if not spec.bilinear:
            total += _conv(2, inputs, inputs // 2, sizes[level + 1])
        middle = inputs // 2 if spec.bilinear else outputs
        total += _double_conv(inputs, middle, outputs, sizes[level])
    return total + _conv(1, width, spec.classes, sizes[0])


def _level_sizes(size: Size) -> list[Size]:
    """Of the input, padded as the graph does, and after each pooling."""
    sizes = [(max(MIN_SIDE, size[0]), max(MIN_SIDE, size[1]))]
    for _ in range(LEVELS):
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    return sizes


def _double_conv(inputs: int, middle: int, outputs: int, size: Size) -> int:
    return _conv(3, inputs, middle, size) + _conv(3, middle, outputs, size)


def _conv(kernel: int, inputs: int, outputs: int, size: Size) -> int:
    """`size` is the output's; of a transposed convolution of stride = kernel, the input's."""
    return 2 * kernel**2 * inputs * outputs * size[0] * size[1]
