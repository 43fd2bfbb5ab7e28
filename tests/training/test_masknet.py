from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS
from unetrt.training.masknet import MaskNet
from unetrt.training.unet import UNet


def masknet_of(classes: int, channels: int = 1, threshold: float = 0.5) -> MaskNet:
    torch.manual_seed(classes)
    spec = ModelSpec(channels=channels, classes=classes, width=2, scale=1, threshold=threshold)
    return MaskNet(UNet(channels, classes, 2), spec).eval()


class Constant(nn.Module):
    """Gives logits that were set, whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.values, [0, x.shape[3] - self.values.shape[3], 0, 0])


def images(count: int, height: int, width: int, channels: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8)


@torch.no_grad()
def reference_masks(
    masknet: MaskNet, batch: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The plain procedure, and the margin by which each pixel was decided."""
    x = batch.permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[2:]
    x = F.pad(x, [0, max(0, 16 - width), 0, max(0, 16 - height)], mode="replicate")
    logits = masknet.net(x)[:, :, :height, :width]
    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    if logits.shape[1] == 1:
        odds = logits.sigmoid()[:, 0] - masknet.spec.threshold
        return (odds > 0).to(torch.uint8), odds.abs()
    best = logits.topk(2, dim=1).values
    return logits.argmax(1).to(torch.uint8), best[:, 0] - best[:, 1]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([1, 2, 4]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_masks_are_those_of_the_plain_procedure(
    classes: int, size: tuple[int, int], mask_size: tuple[int, int]
) -> None:
    masknet, batch = masknet_of(classes, threshold=0.4), images(2, *size)
    with torch.no_grad():
        masks = masknet(batch, torch.empty(mask_size, dtype=torch.uint8))
    expected, margin = reference_masks(masknet, batch, mask_size)
    assert masks.shape == (2, *mask_size)
    assert masks.dtype == torch.uint8
    assert torch.equal(masks[margin > 1e-5], expected[margin > 1e-5])


def test_a_single_pixel_has_a_mask() -> None:
    masks = masknet_of(4, channels=3)(images(1, 1, 1, 3), torch.empty(1, 1, dtype=torch.uint8))
    assert masks.shape == (1, 1, 1)
    assert masks.item() < 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_that_are_not_finite_give_no_class_to_that_image_alone(
    classes: int, bad: float
) -> None:
    logits = torch.randn(2, classes, 16, 16)
    logits[1, 0, 5, 5] = bad
    masknet = MaskNet(Constant(logits), ModelSpec(channels=1, classes=classes))
    masks = masknet(images(2, 16, 16), torch.empty(20, 30, dtype=torch.uint8))
    assert (masks[0] < max(2, classes)).all()
    assert (masks[1] == NO_CLASS).all()


@pytest.mark.parametrize("size", [(16, 16), (20, 30)])
def test_two_logits_whose_difference_overflows_give_no_class(size: tuple[int, int]) -> None:
    logits = torch.zeros(2, 2, 16, 16, dtype=torch.float16)
    logits[1, 0, 5, 5], logits[1, 1, 5, 5] = -40000, 40000
    masknet = MaskNet(Constant(logits), ModelSpec(channels=1, classes=2))
    masks = masknet(images(2, 16, 16), torch.empty(size, dtype=torch.uint8))
    assert (masks[0] == 0).all()
    assert (masks[1] == NO_CLASS).all()


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.99])
def test_one_logit_is_compared_with_the_threshold(threshold: float) -> None:
    logits = torch.linspace(-9, 9, 256).reshape(1, 1, 16, 16)
    masknet = MaskNet(Constant(logits), ModelSpec(channels=1, classes=1, threshold=threshold))
    masks = masknet(images(1, 16, 16), torch.empty(16, 16, dtype=torch.uint8))
    assert torch.equal(masks[0].bool(), logits[0, 0].sigmoid() > threshold)


def test_pixel_values_reach_the_network_as_shares_of_255() -> None:
    seen = []

    class Spy(Constant):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    batch = images(1, 16, 16, 3)
    MaskNet(Spy(torch.zeros(1, 2, 16, 16)), ModelSpec()).logits(batch)
    assert torch.allclose(seen[0], batch.permute(0, 3, 1, 2) / 255)
