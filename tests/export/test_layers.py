"""Shares of arithmetic against the real numbers of multiplications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from unetrt.engine.onnxfile import read_onnx
from unetrt.export.layers import Layer, _layers_from_onnx, onnx_shares, precision_shares
from unetrt.training.unet import UNet


def multiplications(net: nn.Module, side: int) -> list[int]:
    """Of each convolution in order, for one grey image of side × side."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        pixels = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        counts.append(module.weight.numel() * pixels[0, 0].numel())  # type: ignore[operator]

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    net.eval()(torch.zeros(1, 1, side, side))
    return counts


@pytest.mark.parametrize("bilinear", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_arithmetic_is_counted_as_it_is(exported: Callable[..., Path], bilinear: bool) -> None:
    layers = list(_layers_from_onnx(read_onnx(exported(bilinear=bilinear)).graph))
    expected = multiplications(UNet(1, 4, 4, bilinear), 64)
    total = sum(expected)
    names = [layer.name for layer in layers if layer.weights]
    assert len(names) == len(expected)
    for name, count in zip(names, expected, strict=True):
        alone = precision_shares(_only(layers, name))["flops"]
        assert alone["this"] == pytest.approx(count / total, abs=1e-5), name


def _only(layers: list[Layer], name: str) -> Iterator[Layer]:
    for layer in layers:
        precision = "this" if layer.name == name else "rest" if layer.weights else ""
        yield Layer(layer.name, layer.kind, precision, layer.inputs, layer.outputs, layer.weights)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_of_one_precision(exported: Callable[..., Path], precision: str) -> None:
    shares = onnx_shares(exported(precision))
    assert shares == {"layers": {precision: 1.0}, "flops": {precision: 1.0}}
