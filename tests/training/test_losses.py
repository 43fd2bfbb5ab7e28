from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unetrt.contract.types import NO_CLASS
from unetrt.training.losses import LossOptions, _class_sums, segmentation_loss
from unetrt.training.options import Dice

RULES: tuple[Dice, Dice] = ("all", "foreground")


def certain(truth: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits that leave no doubt about `truth`."""
    return 60 * (F.one_hot(truth, classes).permute(0, 3, 1, 2) - 0.5)


@pytest.mark.parametrize("dice", RULES)
def test_a_certain_and_right_answer_costs_nothing(dice: Dice) -> None:
    truth, options = torch.randint(0, 4, (2, 8, 8)), LossOptions(dice=dice)
    right = segmentation_loss(certain(truth, 4), truth, options)
    assert right.item() == pytest.approx(0, abs=1e-5)
    assert segmentation_loss(certain((truth + 1) % 4, 4), truth, options).item() > 50


def test_all_classes_is_the_reference_s_rule() -> None:
    """By hand: cross-entropy plus 1 - 2·|p·t| / (|p| + |t|) over everything."""
    logits, truth = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    shares = logits.softmax(1)
    hot = F.one_hot(truth, 4).permute(0, 3, 1, 2).float()
    dice = 2 * (shares * hot).sum() / (shares.sum() + hot.sum())
    expected = F.cross_entropy(logits, truth) + 1 - dice
    assert segmentation_loss(logits, truth, LossOptions()).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_foreground_dice_is_a_mean_over_present_classes() -> None:
    logits, truth = torch.randn(2, 4, 5, 6), torch.randint(0, 3, (2, 5, 6))
    shares = logits.softmax(1)
    ratios = []
    for c in (1, 2):
        hit = shares[:, c][truth == c].sum()
        ratios.append(2 * hit / (shares[:, c].sum() + (truth == c).sum()))
    expected = F.cross_entropy(logits, truth) + 1 - torch.stack(ratios).mean()
    loss = segmentation_loss(logits, truth, LossOptions(dice="foreground"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_one_logit_is_binary() -> None:
    logits, truth = torch.randn(2, 1, 5, 6), torch.randint(0, 2, (2, 5, 6))
    shares, t = logits[:, 0].sigmoid(), truth.float()
    dice = 2 * (shares * t).sum() / (shares.sum() + t.sum())
    expected = F.binary_cross_entropy(shares, t) + 1 - dice
    for rule in RULES:
        loss = segmentation_loss(logits, truth, LossOptions(dice=rule))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("dice", RULES)
def test_ignored_pixels_change_nothing(classes: int, dice: Dice) -> None:
    logits, truth = torch.randn(2, classes, 6, 6), torch.randint(0, max(2, classes), (2, 6, 6))
    whole = segmentation_loss(logits[:, :, :4], truth[:, :4], LossOptions(dice=dice))
    truth[:, 4:] = NO_CLASS
    logits.requires_grad_()
    loss = segmentation_loss(logits, truth, LossOptions(dice=dice))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert logits.grad is not None
    assert (logits.grad[:, :, 4:] == 0).all()
    assert (logits.grad[:, :, :4] != 0).any()


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("dice", RULES)
def test_a_batch_without_counted_pixels_is_finite(classes: int, dice: Dice) -> None:
    truth = torch.full((1, 4, 4), NO_CLASS)
    logits = torch.randn(1, classes, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, truth, LossOptions(dice=dice))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_class_weights_are_those_of_pytorch_s_cross_entropy() -> None:
    logits, truth = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    weights = (0.5, 2.0, 7.0)
    plain = segmentation_loss(logits, truth, LossOptions()) - F.cross_entropy(logits, truth)
    expected = plain + F.cross_entropy(logits, truth, torch.tensor(weights))
    loss = segmentation_loss(logits, truth, LossOptions(weights=weights))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_focal_loss_turns_away_from_what_is_right(classes: int) -> None:
    """By hand: each pixel's entropy times (1 - p)² of its true class."""
    logits, truth = torch.randn(2, classes, 5, 6), torch.randint(0, max(2, classes), (2, 5, 6))
    both = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    entropy = F.cross_entropy(both, truth, reduction="none")
    p = both.softmax(1).gather(1, truth[:, None])[:, 0]
    plain = segmentation_loss(logits, truth, LossOptions()) - entropy.mean()
    expected = plain + (entropy * (1 - p) ** 2).mean()
    loss = segmentation_loss(logits, truth, LossOptions(loss="focal+dice"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_logits_are_resized_to_the_truth_as_in_prediction() -> None:
    logits, truth = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 11, 12))
    large = F.interpolate(logits, (11, 12), mode="bilinear", align_corners=False)
    options = LossOptions(dice="foreground")
    assert torch.equal(
        segmentation_loss(logits, truth, options), segmentation_loss(large, truth, options)
    )


def test_a_truth_of_its_own_size_pulls_neither_left_nor_up() -> None:
    """Its nearest pixels at half the size do: they are those below and right of the middle."""
    truth = torch.randint(0, 3, (2, 12, 16))

    def pull(truth: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(2, 3, 6, 8, requires_grad=True)
        segmentation_loss(logits, truth, LossOptions()).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        return logits.grad

    for axes in ((1,), (2,)):
        turned = pull(truth.flip(axes)).flip([axis + 1 for axis in axes])
        assert torch.allclose(pull(truth), turned, atol=1e-7)


def test_pixels_are_counted_above_what_a_float32_counts_one_by_one() -> None:
    """A batch of eight pictures of 1280×1918 has 20 million."""
    side = 4500
    shares = torch.full((1, 2, 1, 1), 0.5).expand(1, 2, side, side)
    truth = torch.ones((), dtype=torch.int64).expand(1, side, side)
    common, predicted, true = _class_sums(
        shares, truth, torch.ones(1, 1, 1).bool().expand(1, side, side)
    )
    assert true.tolist() == [0, side**2]
    assert common[1].item() == pytest.approx(side**2 / 2, rel=1e-6)
    assert predicted[0].item() == pytest.approx(side**2 / 2, rel=1e-6)
