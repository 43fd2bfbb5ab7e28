"""The reference's step, written here as Pytorch-UNet has it, beside ours: the same losses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unetrt.engine.open import open_engine
from unetrt.runtime.evaluate import evaluate_engine
from unetrt.training.batches import Batch
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.report import Reporter
from unetrt.training.rundir import RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.train import train
from unetrt.training.trainer import Trainer
from unetrt.training.unet import UNet


def with_classes(options: TrainOptions, classes: int, folder: Path) -> TrainOptions:
    """The pictures of `options` with the reference's recipe; of fewer classes 0 and 255."""
    masks = options.masks
    if classes < 4:
        masks = folder / "binary"
        masks.mkdir()
        for path in options.masks.iterdir():
            white = (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255
            Image.fromarray(white).save(masks / path.name)
    return replace(options, masks=masks, classes=classes, recipe=RecipeOptions())


class Reference:
    """train.py's loop body, fp32: its optimiser, its losses, its clipping."""

    def __init__(self, net: UNet, rate: float) -> None:
        self.net = net.train()
        self.optimizer = torch.optim.RMSprop(
            net.parameters(), lr=rate, weight_decay=1e-8, momentum=0.999, foreach=True
        )
        self.norms: list[float] = []

    def step(self, batch: Batch) -> float:
        images = batch.images.permute(0, 3, 1, 2).float() / 255
        images = images.to(memory_format=torch.channels_last)
        loss = self.loss(self.net(images), batch.truth.long())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.norms.append(norm.item())
        self.optimizer.step()
        return loss.item()

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        classes = logits.shape[1]
        if classes == 1:
            entropy = nn.BCEWithLogitsLoss()(logits.squeeze(1), truth.float())
            return entropy + dice_loss(torch.sigmoid(logits.squeeze(1)), truth.float())
        hot = F.one_hot(truth, classes).permute(0, 3, 1, 2).float()
        shares = F.softmax(logits, dim=1).float()
        return nn.CrossEntropyLoss()(logits, truth) + dice_loss(
            shares.flatten(0, 1), hot.flatten(0, 1)
        )


def dice_loss(shares: Tensor, truth: Tensor) -> Tensor:
    """dice_coeff of all planes at once (reduce_batch_first), with its epsilon."""
    common = 2 * (shares * truth).sum()
    whole = shares.sum() + truth.sum()
    whole = torch.where(whole == 0, common, whole)
    return 1 - (common + 1e-6) / (whole + 1e-6)


def trainer_of(options: TrainOptions) -> tuple[Trainer, UNet]:
    data = load_training_data(options, None)
    torch.manual_seed(0)
    net, folder = UNet(options.channels, options.classes, options.width).train(), RunFolder(None)
    return Trainer(options, data, net, folder, Reporter(folder, data, None), Ranks()), net


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_six_steps_have_the_reference_s_losses(
    quick_options: TrainOptions, tmp_path: Path, classes: int
) -> None:
    """At a rate that moves the weights, with gradients that are clipped.

    RMSprop's first step is by a gradient's sign, and a gradient of rounding errors has any: from
    there on the losses part by 5e-4. Without clipping they would by 5e-2.
    """
    recipe = RecipeOptions(batch_size=4, learning_rate=1e-3)
    options = replace(with_classes(quick_options, classes, tmp_path), recipe=recipe)
    trainer, net = trainer_of(options)
    with torch.no_grad():  # else the gradient of one class has no norm to clip
        net.outc.conv.weight.mul_(4)
    reference = Reference(copy.deepcopy(net), recipe.learning_rate)
    batches = [*trainer._batches.epoch(0), *trainer._batches.epoch(1)]
    expected = [reference.step(batch) for batch in batches]
    found = [trainer._stepper.step(batch)[0] for batch in batches]
    assert len(found) == 6
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found == pytest.approx(expected, abs=5e-3)
    assert abs(expected[-1] - expected[0]) > 0.2
    assert max(reference.norms) > 1, "clipping has to change a step"


def test_the_default_recipe_is_the_reference_s(quick_options: TrainOptions) -> None:
    trainer, net = trainer_of(replace(quick_options, recipe=RecipeOptions()))
    optimizer = trainer._optimizer
    assert type(optimizer) is torch.optim.RMSprop
    wanted = {"lr": 1e-5, "weight_decay": 1e-8, "momentum": 0.999, "alpha": 0.99, "eps": 1e-8}
    assert {name: optimizer.param_groups[0][name] for name in wanted} == wanted
    assert optimizer.param_groups[0]["centered"] is False
    kernel = net.down1.maxpool_conv[1].double_conv[0].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert (RecipeOptions().epochs, RecipeOptions().batch_size, TrainOptions().scale) == (5, 1, 0.5)


def test_one_class_trains_and_is_evaluated(quick_options: TrainOptions, tmp_path: Path) -> None:
    """Masks of 0 and 255: the score of the checkpoint's masks is that of the truth's pixels."""
    options = with_classes(quick_options, 1, tmp_path)
    recipe = replace(quick_options.recipe, epochs=8, batch_size=2, learning_rate=1e-2)
    best = train(replace(options, recipe=recipe))
    with open_engine(best, device="cpu") as engine:
        assert engine.spec.mask_values == (0, 255)
        result = evaluate_engine(engine, options.images, options.masks)
    assert (result.images, result.failures) == (16, [])
    assert [score.name for score in result.scores.classes] == ["background", "class 1"]
    assert result.scores.foreground_miou is not None
    assert result.scores.foreground_miou > 0.3
