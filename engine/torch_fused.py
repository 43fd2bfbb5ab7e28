"""The U-Net as PyTorch runs it fastest, from the graph of an engine directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contract.errors import UserError, first_line
from ..contract.log import log
from ..contract.memory import NO_ENGINE
from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from .onnxfile import EXPORT_HINT, read_onnx
from .torch_pooling import halved

LAYERS = {"Conv": nn.Conv2d, "ConvTranspose": nn.ConvTranspose2d}
"""What has weights, as ONNX calls it, and PyTorch."""
WIDE = torch.complex128
"""The widest numbers that there are, for copies."""
LAST = (0, 2, 3, 1)
"""Channels."""

Weights = Iterator[tuple[Tensor, Tensor]]


class FusedUNet(nn.Module):
    """A U-Net with batch normalisation folded, from (weight, bias) of its layers in their order.

    The logits of training's UNet, rounded as its weights are. On CUDA it does without passes over
    the features: bias and ReLU are part of cuDNN's convolution, a pooling notes no places of its
    maxima, and a transposed convolution is a matrix product that is written right where it is
    concatenated.
    """

    def __init__(self, weights: Weights, bilinear: bool) -> None:
        super().__init__()
        self.inc = _double_conv(weights)
        self.downs = nn.ModuleList(_double_conv(weights) for _ in range(4))
        self.ups = nn.ModuleList(_Up(weights, bilinear) for _ in range(4))
        self.outc = _Conv(*next(weights))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.inc(x)]
        for down in self.downs:
            features.append(down(halved(features[-1])))
        x = features.pop()
        for up in self.ups:  # step by step: what one has read is free for the next
            assert isinstance(up, _Up)
            x = up(x, features.pop())
            for conv in up.convs:
                x = conv(x)
        # Four numbers of a pixel side by side, as channels_last has them, are slow to resize.
        return cast(Tensor, self.outc(x)).contiguous()


class _Conv(nn.Module):
    """A convolution that keeps the size."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _fixed(weight), _fixed(bias)
        self.padding = weight.shape[2] // 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if not _by_cudnn(x) or x.dtype != torch.float32:
            return F.conv2d(x, self.weight, self.bias, padding=self.padding)
        # A block stays in fp32 for what fp16 rounds off; TF32, which PyTorch may take, does too.
        once, padding = (1, 1), (self.padding, self.padding)
        out = torch.cudnn_convolution(
            x, self.weight, padding, once, once, 1, False, False, allow_tf32=False
        )
        return out.add_(self.bias[:, None, None])


class _ConvRelu(_Conv):
    """Asks for each shape whether cuDNN does both in one, and as PyTorch does."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight, bias)
        self.fuses: dict[torch.Size, bool] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if not self.fuses.get(x.shape, True) or not _by_cudnn(x) or x.dtype == torch.float32:
            return self._in_two(x)
        try:
            if x.shape not in self.fuses:
                self.fuses[x.shape] = self._keeps_nan(x)
            if self.fuses[x.shape]:
                return self._in_one(x)
            why = "its ReLU of a NaN is a number"
        except RuntimeError as error:
            if NO_ENGINE not in str(error):
                raise
            why = first_line(error)
        found = self._in_two(x)  # where this finds no engine either, memory is short
        self.fuses[x.shape] = False
        shapes = tuple(x.shape), tuple(self.weight.shape)
        log.info("cuDNN fuses no ReLU with a convolution of %s by %s: %s", *shapes, why)
        return found

    def _in_one(self, x: Tensor) -> Tensor:
        once, padding = (1, 1), (self.padding, self.padding)
        return torch.cudnn_convolution_relu(x, self.weight, self.bias, once, padding, once, 1)

    def _in_two(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()

    def _keeps_nan(self, x: Tensor) -> bool:
        """CuDNN knows a ReLU that makes 0 of NaN: an overflow would become a mask."""
        return bool(self._in_one(torch.full_like(x, torch.nan)).isnan().all())


def _by_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.version.cuda is not None


class _Up(nn.Module):
    """Twice the height and width, at the middle of the skip's size, concatenated.

    convs: the two that follow.
    """

    def __init__(self, weights: Weights, bilinear: bool) -> None:
        super().__init__()
        self.up = None if bilinear else _Doubling(*next(weights))
        self.convs = _double_conv(weights)
        first = cast(Tensor, self.convs[0].weight)
        self.inputs, self.dtype = first.shape[1], first.dtype

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        batch, channels, height, width = skip.shape
        joined = torch.empty(
            (batch, self.inputs, height, width),
            dtype=self.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        _copy(joined[:, :channels].permute(*LAST), skip.permute(*LAST))
        self._write(x, joined[:, channels:])
        return joined

    def _write(self, x: Tensor, target: Tensor) -> None:
        height, width = (2 * side for side in x.shape[2:])
        top, left = (target.shape[2] - height) // 2, (target.shape[3] - width) // 2
        bottom, right = top + height, left + width
        for edge in (
            target[:, :, :top],
            target[:, :, bottom:],
            target[:, :, top:bottom, :left],
            target[:, :, top:bottom, right:],
        ):
            if edge.numel():
                edge.zero_()
        place = target[:, :, top:bottom, left:right]
        if self.up is None:
            place.copy_(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
        else:
            self.up(x, place)


class _Doubling(nn.Module):
    """A transposed convolution of kernel and stride 2: no two of its outputs share a product."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        # (inputs, outputs, 2, 2) → (inputs, 2·2·outputs): the four pixels of each, in their order.
        self.weight = _fixed(weight.permute(0, 2, 3, 1).flatten(1))
        self.bias = _fixed(bias.repeat(4))

    def forward(self, x: Tensor, place: Tensor) -> None:
        """Write into `place` (N, outputs, 2h, 2w)."""
        batch, channels, height, width = x.shape
        pixels = x.to(self.weight.dtype).permute(*LAST).reshape(-1, channels)
        fours = torch.addmm(self.bias, pixels, self.weight)
        rows = place.unflatten(2, (height, 2))  # type: ignore[no-untyped-call]
        pairs = rows.unflatten(4, (width, 2)).permute(0, 2, 4, 3, 5, 1)
        _copy(pairs, fours.view(batch, height, width, 2, 2, -1))


def _double_conv(weights: Weights) -> nn.Sequential:
    return nn.Sequential(_ConvRelu(*next(weights)), _ConvRelu(*next(weights)))


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _copy(target: Tensor, source: Tensor) -> None:
    """Of one dtype, channels last, in pieces of 16 bytes where they fit.

    PyTorch copies what has gaps number by number: of fp16 at a third of the memory's speed.
    """
    if target.dtype == source.dtype and _fits(target) and _fits(source):
        target, source = target.view(WIDE), source.view(WIDE)
    target.copy_(source)


def _fits(x: Tensor) -> bool:
    numbers = WIDE.itemsize // x.element_size()
    places = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    return x.stride(-1) == 1 and not any(place % numbers for place in places)


def fused_unet_from_onnx(path: Path, spec: ModelSpec) -> FusedUNet:
    """Raises UserError where the graph's layers are not those of the spec's U-Net."""
    weights = list(_weights_from_onnx(path))
    found = [(layer, *weight.shape) for layer, weight, _ in weights]
    expected = [*_layers_of(spec)]
    if found != expected:
        wrong = next((f for f, e in zip(found, expected, strict=False) if f != e), None)
        raise UserError(
            f"{path} does not hold the layers of its U-Net",
            seen=f"{len(found)} layers" if wrong is None else f"a layer of {wrong}",
            expected=f"{len(expected)} layers of width {spec.width}",
            hint=EXPORT_HINT,
        )
    return FusedUNet(((weight, bias) for _, weight, bias in weights), spec.bilinear)


def _layers_of(spec: ModelSpec) -> Iterator[tuple[Any, ...]]:
    """(ONNX's name, *shape of the weights) of a U-Net's layers, in the order that they run in."""
    from ..training.unet import UNet

    with torch.device("meta"):
        net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear)
    names = {kind: name for name, kind in LAYERS.items()}
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield (names[type(module)], *module.weight.shape)


def _weights_from_onnx(path: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(ONNX's name, weight, bias) of the layers, in the order that they run in."""
    graph = read_onnx(path).graph
    to_array = import_module("onnx").numpy_helper.to_array
    stored = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type not in LAYERS:
            continue
        if not all(name in stored for name in node.input[1:]):
            raise UserError(
                f"{path} holds a layer without weights of its own",
                seen=node.name,
                expected="convolutions with weight and bias as they were exported",
                hint=EXPORT_HINT,
            )
        # Copied: what ONNX gives is read-only.
        found = [torch.from_numpy(to_array(stored[name]).copy()) for name in node.input[1:]]
        # A bias of nothing but zeros is not exported.
        found.append(found[0].new_zeros(found[0].shape[int(node.op_type == "ConvTranspose")]))
        yield node.op_type, found[0], found[1]
