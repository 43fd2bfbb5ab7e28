from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unetrt.export.fold import fold_batchnorm
from unetrt.training.unet import UNet


def lived_in(channels: int, classes: int, bilinear: bool, seed: int = 0) -> UNet:
    """A network whose normalisation has statistics and scales as training leaves them."""
    torch.manual_seed(seed)
    net = UNet(channels, classes, 4, bilinear).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 2)
            nn.init.uniform_(module.bias, 0, 1)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.05, 3)  # type: ignore[arg-type]
    return net


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 99))
@torch.no_grad()
def test_logits_stay_within_1e_4(channels: int, classes: int, bilinear: bool, seed: int) -> None:
    net = lived_in(channels, classes, bilinear, seed)
    image = torch.rand(2, channels, 37, 50)
    expected = net(image)
    assert expected.std() > 1e-3
    assert (fold_batchnorm(net)(image) - expected).abs().max() < 1e-4


def test_no_normalisation_is_left() -> None:
    folded = fold_batchnorm(lived_in(1, 2, False))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(p.numel() for p in folded.parameters()) < sum(
        p.numel() for p in lived_in(1, 2, False).parameters()
    )


@pytest.mark.parametrize("training", [False, True])
def test_the_original_is_untouched(training: bool) -> None:
    net = lived_in(3, 2, True).train(training)
    before = copy.deepcopy(net.state_dict())
    folded = fold_batchnorm(net)
    assert not folded.training
    assert net.training == training
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    own = {p.data_ptr() for p in net.parameters()}
    assert not own & {p.data_ptr() for p in folded.parameters()}
