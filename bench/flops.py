"""The network's arithmetic, counted from its spec: what TFLOP/s are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..contract.spec import MIN_SIDE, ModelSpec
from ..contract.types import Size

LEVELS = 4
"""Poolings of the U-Net."""


@dataclass(frozen=True)
class Convolution:
    """A convolution, plain or transposed; flops: of one image, a multiply-add is two."""

    block: str
    flops: int


def count_flops(spec: ModelSpec, size: Size) -> int:
    """Floating-point operations of one image at network size (h, w); a multiply-add is two.

    Convolutions and transposed convolutions only, as everyone counts: what they are followed by
    (bias, activation, pooling, the resize of the logits) is below 1 % of them.
    """
    return sum(convolution.flops for convolution in network_convolutions(spec, size))


def network_convolutions(spec: ModelSpec, size: Size) -> list[Convolution]:
    """In the only order in which they can run: each needs the one before it."""
    sizes = _level_sizes(size)
    outc = Convolution("outc", _conv(1, spec.width, spec.classes, sizes[0]))
    return [*_encoder(spec, sizes), *_decoder(spec, sizes), outc]


def _encoder(spec: ModelSpec, sizes: list[Size]) -> Iterator[Convolution]:
    yield from _double_conv("inc", spec.channels, spec.width, spec.width, sizes[0])
    for level in range(1, LEVELS + 1):
        inputs = spec.width << (level - 1)
        outputs = 2 * inputs // (2 if spec.bilinear and level == LEVELS else 1)
        yield from _double_conv(f"down{level}", inputs, outputs, outputs, sizes[level])


def _decoder(spec: ModelSpec, sizes: list[Size]) -> Iterator[Convolution]:
    factor = 2 if spec.bilinear else 1
    for level in range(LEVELS - 1, -1, -1):
        block = f"up{LEVELS - level}"
        inputs = 2 * spec.width << level
        outputs = spec.width if level == 0 else (spec.width << level) // factor
        if not spec.bilinear:
            yield Convolution(f"{block}.up", _conv(2, inputs, inputs // 2, sizes[level + 1]))
        middle = inputs // 2 if spec.bilinear else outputs
        yield from _double_conv(block, inputs, middle, outputs, sizes[level])


def _level_sizes(size: Size) -> list[Size]:
    """Of the input, padded as the graph does, and after each pooling."""
    sizes = [(max(MIN_SIDE, size[0]), max(MIN_SIDE, size[1]))]
    for _ in range(LEVELS):
        height, width = sizes[-1]
        sizes.append((height // 2, width // 2))
    return sizes


def _double_conv(
    block: str, inputs: int, middle: int, outputs: int, size: Size
) -> Iterator[Convolution]:
    yield Convolution(f"{block}.1", _conv(3, inputs, middle, size))
    yield Convolution(f"{block}.2", _conv(3, middle, outputs, size))


def _conv(kernel: int, inputs: int, outputs: int, size: Size) -> int:
    """`size` is the output's; of a transposed convolution of stride = kernel, the input's."""
    return 2 * kernel**2 * inputs * outputs * size[0] * size[1]
