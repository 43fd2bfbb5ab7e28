"""How a network is trained: the reference's defaults, and the `modern` recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..contract.errors import UserError

Optimizer = Literal["rmsprop", "adamw"]
Schedule = Literal["plateau", "onecycle", "cosine"]
Loss = Literal["ce+dice", "focal+dice"]
Dice = Literal["all", "foreground"]


def _require(ok: bool, flag: str, seen: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{flag} is wrong", seen=seen, expected=expected)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How the weights move. The defaults are those of milesial/Pytorch-UNet.

    schedule: "plateau" divides the rate by 10 after 5 epochs without a better score; "onecycle"
    rises to `learning_rate` and falls to zero, step by step; "cosine" only falls.
    loss: cross-entropy or its focal form, plus Dice. dice: "all" counts the background as one
    class among others, "foreground" leaves it out.
    class_weights: of each class in the cross-entropy; "auto" is 1 / √(share of the pixels).
    augment: random flips, quarter turns (of square inputs), scale, brightness and contrast.
    batch_size: images in a step, over all processes.
    """

    epochs: int = 5
    batch_size: int = 1
    learning_rate: float = 1e-5
    optimizer: Optimizer = "rmsprop"
    schedule: Schedule = "plateau"
    loss: Loss = "ce+dice"
    dice: Dice = "all"
    class_weights: tuple[float, ...] | Literal["auto"] = ()
    augment: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "--epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        _require(0 < self.learning_rate < 1, "--learning-rate", self.learning_rate, "0 to 1")
        weights = self.class_weights
        positive = weights == "auto" or all(0 < w < math.inf for w in weights)
        _require(positive, "--class-weights", weights, "auto, or a positive number for each class")


RECIPES = {
    "reference": RecipeOptions(),
    "modern": RecipeOptions(
        epochs=30,
        batch_size=8,
        learning_rate=2e-3,
        optimizer="adamw",
        schedule="onecycle",
        dice="foreground",
        augment=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is trained, on what, and where it goes.

    val_images, val_masks: folders to score on; without them `validation` percent of the pairs,
    drawn by `seed`, are kept back.
    classes: 1 is one logit and a threshold. width: channels of the first convolution.
    crop: side in pixels, at the network's scale, of the random squares that are trained on.
    bit_depth: of the data in 16-bit image files, where it is below 16.
    ignore_index: the mask-file value that takes no part in loss and scores.
    load: a checkpoint to start from. out: the run's folder; without it the first free of
    runs/train, runs/train-2 …
    resume: a run's folder, or its last.pth: goes on with that run's own options.
    amp: compute in bfloat16, or in float16 where the GPU lacks that.
    workers: threads that make batches ahead; None leaves one core to the step.
    wandb: log to Weights & Biases too.
    """

    images: Path = Path("data/imgs")
    masks: Path = Path("data/masks")
    val_images: Path | None = None
    val_masks: Path | None = None
    validation: float = 10.0
    channels: int = 3
    classes: int = 2
    class_names: tuple[str, ...] = ()
    width: int = 64
    bilinear: bool = False
    scale: float = 0.5
    ignore_index: int | None = None
    bit_depth: int | None = None
    crop: int | None = None
    recipe: RecipeOptions = field(default=RECIPES["reference"])
    load: Path | None = None
    amp: bool = False
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    resume: Path | None = None
    workers: int | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for numbers that no run can have; the model spec checks its own."""
        both = (self.val_images is None) == (self.val_masks is None)
        _require(both, "--val-images and --val-masks", "one of them", "both, or neither")
        percent, depth = self.validation, self.bit_depth
        _require(0 < percent < 100, "--validation", percent, "a percentage above 0, below 100")
        _require(self.crop is None or self.crop >= 16, "--crop", self.crop, "at least 16")
        _require(depth is None or 9 <= depth <= 16, "--bit-depth", depth, "9 to 16")
        ignored = self.ignore_index
        _require(ignored is None or 0 <= ignored <= 255, "--ignore-index", ignored, "0 to 255")
        classes, weights = max(2, self.classes), self.recipe.class_weights
        fits = weights in ("auto", ()) or len(weights) == classes
        _require(fits, "--class-weights", f"{len(weights)} numbers", f"{classes} or auto")
        _require(self.seed >= 0, "--seed", self.seed, "0 or more")
        workers = self.workers
        _require(workers is None or 0 <= workers <= 64, "--workers", workers, "0 to 64")
