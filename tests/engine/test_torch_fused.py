"""The U-Net of an engine directory in PyTorch: the numbers of the graph that it is made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import balanced_checkpoint, steel
from unetrt.contract.errors import DeviceMemoryError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import Size
from unetrt.engine import torch_fused
from unetrt.engine.torch_backend import torch_errors
from unetrt.engine.torch_fused import FusedUNet, _copy, fused_unet_from_onnx
from unetrt.export.onnx_export import Precision, folded_masknet
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


def fused(net: MaskNet) -> MaskNet:
    """Of an exported network's weights, as an engine holds it."""
    layers = [m for m in net.net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = ((layer.weight.data, cast(Tensor, layer.bias).data) for layer in layers)
    return held(FusedUNet(weights, net.spec.bilinear), net.spec)


def fused_from_file(path: Path, spec: ModelSpec) -> MaskNet:
    return held(fused_unet_from_onnx(path, spec), spec)


def held(net: FusedUNet, spec: ModelSpec) -> MaskNet:
    found = MaskNet(net, spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found.eval()  # type: ignore[no-any-return]


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
def test_its_logits_are_those_of_the_network_that_is_exported(
    precision: Precision, arguments: dict[str, Any]
) -> None:
    expected = folded_masknet(balanced_checkpoint(**arguments), precision)
    net = fused(expected)
    apart = {size: most_apart(net, expected, size) for size in SIZES}
    assert max(apart.values()) < ROUNDING[precision], apart


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_its_weights_are_those_of_the_file(precision: Precision, exported: Files) -> None:
    checkpoint = balanced_checkpoint()
    expected = fused(folded_masknet(checkpoint, precision)).state_dict()
    found = fused_from_file(exported(precision), checkpoint.spec).state_dict()
    assert list(found) == list(expected)
    for name, weight in found.items():
        assert weight.dtype == expected[name].dtype
        # The same folding, by another PyTorch process: to the last bit but one.
        torch.testing.assert_close(weight, expected[name], rtol=2e-3, atol=1e-6)


def test_blocks_in_fp32_stay_in_it() -> None:
    expected = folded_masknet(balanced_checkpoint(), "fp16", ("inc", "down3", "up2", "outc"))
    net = fused(expected)
    kinds = [parameter.dtype for parameter in net.parameters() if parameter.ndim == 4]
    assert kinds.count(torch.float32) == 2 + 2 + 2 + 1
    assert most_apart(net, expected, (33, 50)) < ROUNDING["fp16"]


def test_a_bias_of_zeros_is_not_in_the_file(exported: Files, tmp_path: Path) -> None:
    """The exporter leaves it out; here of the first convolution and a transposed one."""
    checkpoint = balanced_checkpoint()
    expected = folded_masknet(checkpoint)
    for module in (expected.net.inc.double_conv[0], expected.net.up1.up):  # type: ignore[union-attr, index]
        module.bias.data.zero_()

    def drop(graph: Any) -> None:
        for kind in ("Conv", "ConvTranspose"):
            del next(node for node in graph.node if node.op_type == kind).input[2:]

    net = fused_from_file(changed(exported(), tmp_path / "zeros.onnx", drop), checkpoint.spec)
    assert most_apart(net, expected, (33, 50)) < ROUNDING["fp32"]


def test_a_batch_gives_each_image_what_it_gives_alone() -> None:
    net = fused(folded_masknet(balanced_checkpoint()))
    images = pictures((33, 50), net.spec.channels)
    with torch.inference_mode():
        both, alone = net.logits(images), net.logits(images[1:])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)


class Unfused:
    """Stands in for a cuDNN that has no way, or no memory, for a convolution with its ReLU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried = 0
        monkeypatch.setattr(torch_fused, "_by_cudnn", lambda _: True)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", self.refuse)

    def refuse(self, *_: Any, **__: Any) -> Tensor:
        self.tried += 1
        raise RuntimeError("GET was unable to find an engine to execute this computation")


def test_what_cudnn_does_not_fuse_runs_in_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = folded_masknet(balanced_checkpoint(), "fp16")
    net, cudnn = fused(expected), Unfused(monkeypatch)
    for _ in range(2):
        assert most_apart(net, expected, (33, 50)) < ROUNDING["fp16"]
    assert cudnn.tried == 18, "each is tried once"


def test_a_relu_that_makes_a_number_of_nan_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = folded_masknet(balanced_checkpoint(), "fp16")
    net, asked = fused(expected), []

    def relu(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
        asked.append(x)
        found = F.conv2d(x, weight, bias, padding=1)
        return torch.where(found > 0, found, 0.0)

    monkeypatch.setattr(torch_fused, "_by_cudnn", lambda _: True)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    images = pictures((33, 50), 1)
    for _ in range(2):
        assert most_apart(net, expected, (33, 50)) < ROUNDING["fp16"]
    assert len(asked) == 18, "each is asked once"
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda *a: relu(*a) + 0 * a[0].sum())
    kept = fused(expected)
    kept.logits(images)
    layers = [layer for layer in kept.modules() if isinstance(layer, torch_fused._ConvRelu)]
    assert [list(layer.fuses.values()) for layer in layers] == [[True]] * 18


def test_what_finds_no_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = folded_masknet(balanced_checkpoint(), "fp16")
    net, cudnn = fused(expected), Unfused(monkeypatch)
    images = pictures((33, 50), 1)
    with monkeypatch.context() as patch:
        patch.setattr(F, "conv2d", cudnn.refuse)
        with (
            pytest.raises(DeviceMemoryError, match="no memory for a batch"),
            torch_errors("a batch"),
        ):
            net.logits(images)
    assert most_apart(net, expected, (33, 50)) < ROUNDING["fp16"]
    assert cudnn.tried == 2 + 18


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    shutil.copy(source, target)
    model = onnx.load(target)
    change(model.graph)
    onnx.save(model, target)
    return target


def test_a_graph_of_another_network_is_refused(exported: Files) -> None:
    with pytest.raises(UserError, match="does not hold the layers of its U-Net") as caught:
        fused_unet_from_onnx(exported(), ModelSpec(channels=1, classes=4, width=8))
    assert str(caught.value.seen) == "a layer of ('Conv', 4, 1, 3, 3)"
    assert "width 8" in str(caught.value.expected)


def test_a_layer_that_is_gone(exported: Files, tmp_path: Path) -> None:
    def drop(graph: Any) -> None:
        last = max(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
        del graph.node[last]

    path = changed(exported(), tmp_path / "short.onnx", drop)
    with pytest.raises(UserError, match="does not hold the layers") as caught:
        fused_unet_from_onnx(path, balanced_checkpoint().spec)
    assert (caught.value.seen, str(caught.value.expected)[:9]) == ("22 layers", "23 layers")


def test_weights_that_another_node_computes(exported: Files, tmp_path: Path) -> None:
    def rename(graph: Any) -> None:
        conv = next(node for node in graph.node if node.op_type == "Conv")
        conv.input[1] = "computed"

    path = changed(exported(), tmp_path / "other.onnx", rename)
    with pytest.raises(UserError, match="without weights of its own"):
        fused_unet_from_onnx(path, balanced_checkpoint().spec)


@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(1, 17) | st.sampled_from([8, 16, 24]),
    offset=st.integers(0, 17) | st.sampled_from([0, 8, 16]),
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


def test_the_network_has_no_weights_to_train(exported: Files) -> None:
    net = fused_unet_from_onnx(exported(), balanced_checkpoint().spec)
    assert isinstance(net, FusedUNet)
    assert not any(parameter.requires_grad for parameter in net.parameters())
