from __future__ import annotations

import pytest
import torch

from unetrt.training.unet import UNet


def parameters(net: UNet) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("classes", "bilinear", "count"),
    [(2, False, 31_037_698), (1, True, 17_262_977), (2, True, 17_263_042)],
)
def test_parameter_count_is_the_reference_s(classes: int, bilinear: bool, count: int) -> None:
    with torch.device("meta"):
        assert parameters(UNet(3, classes, 64, bilinear)) == count


def test_key_names_are_the_reference_s() -> None:
    keys = list(UNet(1, 2, 2).state_dict())
    assert keys[0] == "inc.double_conv.0.weight"
    assert keys[-2:] == ["outc.conv.weight", "outc.conv.bias"]
    for key in (
        "inc.double_conv.1.running_var",
        "inc.double_conv.4.num_batches_tracked",
        "down4.maxpool_conv.1.double_conv.3.weight",
        "up1.up.weight",
        "up1.up.bias",
        "up4.conv.double_conv.4.bias",
    ):
        assert key in keys
    assert len(keys) == 118
    assert not any("bias" in key for key in keys if key.endswith(("conv.0.bias", "conv.3.bias")))


def test_bilinear_upsampling_has_no_weights() -> None:
    keys = UNet(1, 2, 2, bilinear=True).state_dict()
    assert not any(".up.up" in key or key.endswith(".up.weight") for key in keys)
    assert keys["up1.conv.double_conv.0.weight"].shape == (16, 32, 3, 3)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (50, 25)])
def test_logits_have_the_image_s_size(size: tuple[int, int], bilinear: bool) -> None:
    net = UNet(3, 5, 2, bilinear).eval()
    assert net(torch.rand(2, 3, *size)).shape == (2, 5, *size)
