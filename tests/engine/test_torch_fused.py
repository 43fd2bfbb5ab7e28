"""The U-Net of an engine directory in PyTorch: the numbers of the graph that it is made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import steel
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import Size
from unetrt.engine.torch_fused import FusedUNet, _copy, fused_unet_from_onnx
from unetrt.export.onnx_export import Precision, folded_masknet, onnx_from_checkpoint
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.masknet import MaskNet

Files = Callable[..., Path]
SIZES: tuple[Size, ...] = ((64, 64), (33, 21), (7, 50), (101, 143), (16, 31))
"""With and without rows and columns that a pooling leaves out; smaller than the network takes."""
NETS: tuple[dict[str, Any], ...] = (
    {},
    {"bilinear": True},
    {"classes": 1},
    {"classes": 2, "channels": 3, "width": 8},
)
ROUNDING = {"fp32": 1e-6, "fp16": 2e-3}
"""Of logits below 1: the same sums in another order, rounded to fp16's ten bits at each layer."""


def fused(path: Path, spec: ModelSpec) -> MaskNet:
    """As an engine holds it."""
    net = MaskNet(fused_unet_from_onnx(path, spec), spec)
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def pictures(size: Size, channels: int) -> Tensor:
    return torch.from_numpy(np.stack([steel(i, *size, channels) for i in range(2)]))


def most_apart(net: MaskNet, other: MaskNet, size: Size) -> float:
    images = pictures(size, net.spec.channels)
    with torch.inference_mode():
        found, expected = net.logits(images), other.logits(images)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float(expected.abs().max()) < 1
    return float((found.float() - expected.float()).abs().max())


@pytest.mark.parametrize("arguments", NETS, ids=lambda a: "-".join(a) or "default")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_its_logits_are_those_of_the_network_that_was_exported(
    precision: Precision, arguments: dict[str, Any], exported: Files, checkpoint_file: Files
) -> None:
    checkpoint = read_checkpoint(checkpoint_file(**arguments))
    net = fused(exported(precision, **arguments), checkpoint.spec)
    expected = folded_masknet(checkpoint, precision)
    apart = {size: most_apart(net, expected, size) for size in SIZES}
    assert max(apart.values()) < ROUNDING[precision], apart


def test_blocks_in_fp32_stay_in_it(checkpoint_file: Files, tmp_path: Path) -> None:
    checkpoint, path = read_checkpoint(checkpoint_file()), tmp_path / "model.onnx"
    blocks = ("inc", "down3", "up2", "outc")
    onnx_from_checkpoint(checkpoint, path, "fp16", fp32_blocks=blocks)
    net = fused(path, checkpoint.spec)
    kinds = [parameter.dtype for parameter in net.parameters() if parameter.ndim == 4]
    assert kinds.count(torch.float32) == 2 + 2 + 2 + 1
    expected = folded_masknet(checkpoint, "fp16", blocks)
    assert most_apart(net, expected, (33, 50)) < ROUNDING["fp16"]


def test_a_bias_of_zeros_is_not_in_the_file(checkpoint_file: Files, tmp_path: Path) -> None:
    """The exporter leaves it out."""
    checkpoint, path = read_checkpoint(checkpoint_file()), tmp_path / "model.onnx"
    for name, value in checkpoint.state.items():
        if name.endswith((".bias", "running_mean")):
            value.zero_()
    onnx_from_checkpoint(checkpoint, path)
    layers = [node for node in onnx.load(path).graph.node if "Conv" in node.op_type]
    assert {len(node.input) for node in layers} >= {2}
    net = fused(path, checkpoint.spec)
    assert most_apart(net, folded_masknet(checkpoint), (33, 50)) < ROUNDING["fp32"]


def test_a_batch_gives_each_image_what_it_gives_alone(
    exported: Files, checkpoint_file: Files
) -> None:
    spec = read_checkpoint(checkpoint_file()).spec
    net = fused(exported(), spec)
    images = pictures((33, 50), spec.channels)
    with torch.inference_mode():
        both, alone = net.logits(images), net.logits(images[1:])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    shutil.copy(source, target)
    model = onnx.load(target)
    change(model.graph)
    onnx.save(model, target)
    return target


def test_a_graph_of_another_network_is_refused(exported: Files, checkpoint_file: Files) -> None:
    path = exported(width=8, classes=2, channels=3)
    with pytest.raises(UserError, match="does not hold the layers of its U-Net") as caught:
        fused_unet_from_onnx(path, read_checkpoint(checkpoint_file()).spec)
    assert "Conv" in str(caught.value.seen)
    assert "width 4" in str(caught.value.expected)


def test_a_layer_that_is_gone(exported: Files, checkpoint_file: Files, tmp_path: Path) -> None:
    def drop(graph: Any) -> None:
        last = max(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
        del graph.node[last]

    path = changed(exported(), tmp_path / "short.onnx", drop)
    with pytest.raises(UserError, match="does not hold the layers") as caught:
        fused_unet_from_onnx(path, read_checkpoint(checkpoint_file()).spec)
    assert (caught.value.seen, str(caught.value.expected)[:9]) == ("22 layers", "23 layers")


def test_weights_that_another_node_computes(
    exported: Files, checkpoint_file: Files, tmp_path: Path
) -> None:
    def rename(graph: Any) -> None:
        conv = next(node for node in graph.node if node.op_type == "Conv")
        conv.input[1] = "computed"

    path = changed(exported(), tmp_path / "other.onnx", rename)
    with pytest.raises(UserError, match="without weights of its own"):
        fused_unet_from_onnx(path, read_checkpoint(checkpoint_file()).spec)


@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(1, 17),
    offset=st.integers(0, 17),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_a_wide_copy_copies_bit_for_bit(
    channels: int, offset: int, dtype: torch.dtype, seed: int
) -> None:
    """Into a part of the channels, as a skip is; whatever the bits are, NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = {torch.float16: torch.int16, torch.float32: torch.int32}[dtype]
    width = bits.itemsize
    shape = (2, 3, 5, channels * width)
    raw = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    source = raw.view(dtype)
    whole = torch.zeros(2, 3, 5, channels + offset, dtype=dtype)
    _copy(whole[..., offset:], source)
    assert torch.equal(whole[..., offset:].contiguous().view(bits), source.view(bits))
    assert not whole[..., :offset].any()


def test_the_network_has_no_weights_to_train(exported: Files, checkpoint_file: Files) -> None:
    net = fused_unet_from_onnx(exported(), read_checkpoint(checkpoint_file()).spec)
    assert isinstance(net, FusedUNet)
    assert not any(parameter.requires_grad for parameter in net.parameters())
