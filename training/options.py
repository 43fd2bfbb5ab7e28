"""How a network is trained: the reference's defaults, and the `modern` recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..contract.errors import UserError
from ..contract.spec import MAX_CHANNELS, MaskValue, ignored_values
from ..contract.types import NO_CLASS

Optimizer = Literal["rmsprop", "adamw"]
Schedule = Literal["plateau", "onecycle", "cosine"]
Loss = Literal["ce+dice", "focal+dice"]
Dice = Literal["all", "foreground"]
LossSize = Literal["network", "mask"]


def _require(ok: bool, flag: str, seen: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{flag} is wrong", seen=seen, expected=expected)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How the weights move. The defaults are those of milesial/Pytorch-UNet.

    schedule: "plateau" divides the rate by 10 at the sixth epoch without a better score; "onecycle"
    rises to `learning_rate` and falls to zero, step by step; "cosine" only falls.
    loss: cross-entropy or its focal form, plus Dice. dice: "all" counts the background as one
    class among others, "foreground" leaves it out.
    loss_size: where the loss is taken: "network", on masks made as small as the network's image by
    their nearest pixels, or "mask", at the masks' own size, on logits resized as in prediction.
    class_weights: of each class in the cross-entropy; "auto" is 1 / √(share of the pixels).
    augment: random flips, quarter turns (of square inputs), scale, brightness and contrast.
    ema: decay of the weights' running average, which is what is scored and kept; 0 is none.
    teacher_weight: of being like the teacher in the loss, where there is one; the masks have the
    rest.
    batch_size: images in a step, over all processes.
    """

    epochs: int = 5
    batch_size: int = 1
    learning_rate: float = 1e-5
    optimizer: Optimizer = "rmsprop"
    schedule: Schedule = "plateau"
    loss: Loss = "ce+dice"
    dice: Dice = "all"
    loss_size: LossSize = "network"
    class_weights: tuple[float, ...] | Literal["auto"] = ()
    augment: bool = False
    ema: float = 0.0
    teacher_weight: float = 0.6

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "--epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        _require(
            0 < self.learning_rate < 1, "--learning-rate", self.learning_rate, "above 0, below 1"
        )
        _require(0 <= self.ema < 1, "--ema", self.ema, "0 (none), to below 1")
        weight = self.teacher_weight
        _require(0 < weight <= 1, "--teacher-weight", weight, "above 0, to 1 (no masks)")
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
        ema=0.998,
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
    mask_values: those of the classes, in their order, whether they occur or not; without them
    they are 0 to classes - 1 if no mask holds another, else those that occur.
    load: a checkpoint to start from. teacher: one whose answers are learnt beside the masks.
    out: the run's folder; without it the first free of runs/train, runs/train-2 …
    resume: a run's folder, or its last.pth: goes on with that run's own options.
    amp: compute in bfloat16, or in float16 where the GPU lacks that; a CPU without it: in fp32.
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
    mask_values: tuple[MaskValue, ...] = ()
    width: int = 64
    bilinear: bool = False
    scale: float = 0.5
    ignore_index: int | None = None
    bit_depth: int | None = None
    crop: int | None = None
    recipe: RecipeOptions = field(default=RECIPES["reference"])
    load: Path | None = None
    teacher: Path | None = None
    amp: bool = False
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    resume: Path | None = None
    workers: int | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        """Raise UserError, by the flag's name, for what no run can have.

        A resumed run has what goes with a flag that is repeated alone.
        """
        alone = self.resume is None
        both = (self.val_images is None) == (self.val_masks is None) or not alone
        _require(both, "--val-images and --val-masks", "one of them", "both, or neither")
        weight = self.recipe.teacher_weight
        taught = self.teacher is not None or weight == RecipeOptions.teacher_weight or not alone
        _require(taught, "--teacher-weight", f"{weight:g} and no teacher", "--teacher beside it")
        percent, depth = self.validation, self.bit_depth
        _require(0 < percent < 100, "--validation", percent, "a percentage above 0, below 100")
        _require(self.crop is None or self.crop >= 16, "--crop", self.crop, "at least 16")
        _require(depth is None or 8 <= depth <= 16, "--bit-depth", depth, "8 to 16")
        ignored = self.ignore_index
        _require(ignored is None or 0 <= ignored <= 255, "--ignore-index", ignored, "0 to 255")
        _require(0 <= self.seed < 2**63, "--seed", self.seed, "0 to 2^63 - 1")
        workers = self.workers
        _require(workers is None or 0 <= workers <= 64, "--workers", workers, "0 to 64")
        self._check_network()
        if alone:
            self._check_classes()

    def _check_network(self) -> None:
        scale = self.scale
        _require(0 < scale <= 8, "--scale", scale, "above 0, to 8")  # NaN is neither
        _require(
            1 <= self.channels <= MAX_CHANNELS, "--channels", self.channels, f"1 to {MAX_CHANNELS}"
        )
        _require(self.width >= 1, "--width", self.width, "at least 1")
        most = NO_CLASS - 1
        _require(1 <= self.classes <= most, "--classes", self.classes, f"1 to {most}")

    def _check_classes(self) -> None:
        """What stands for each class is there once, in the right number."""
        count, weights = max(2, self.classes), self.recipe.class_weights
        fits = weights in ("auto", ()) or len(weights) == count
        _require(fits, "--class-weights", f"{len(weights)} numbers", f"{count} or auto")
        names, values = self.class_names, self.mask_values
        whole = len(set(names)) == len(names) == count and all(name.strip() for name in names)
        _require(not names or whole, "--class-names", ",".join(names), f"{count} that differ")
        whole = len(set(values)) == len(values) == count and _are_values(values)
        expected = f"{count} that differ, 0 to 255, or all of them R:G:B"
        _require(not values or whole, "--mask-values", values_text(values), expected)
        ignored = self.ignore_index
        apart = not ignored_values(ignored) & set(values)
        expected = f"none of --mask-values {values_text(values)}: it is of no class"
        _require(apart, "--ignore-index", ignored, expected)


def _are_values(values: tuple[MaskValue, ...]) -> bool:
    """All integers, or all RGB triples, each of 0 to 255."""
    flat = [x for v in values for x in (v if isinstance(v, tuple) else (v,))]
    depths = {len(v) if isinstance(v, tuple) else 0 for v in values}
    return depths in ({0}, {3}) and all(0 <= x <= 255 for x in flat)


def values_text(values: tuple[MaskValue, ...]) -> str:
    """As they are written after --mask-values."""
    texts = [":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
    return ",".join(texts)
