"""`unetrt train`: images and masks → a checkpoint."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from ..contract.patience import patient_threads
from .shared import (
    images,
    mask_values,
    model_path,
    names,
    number,
    writable_dir,
)

if TYPE_CHECKING:
    from ..training.options import RecipeOptions, TrainOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags without defaults, so that one that is given is told from one that is not.

    TrainOptions and the recipe have the defaults; the texts here repeat them.
    """
    data = parser.add_argument_group("data")
    data.add_argument("--images", type=images, metavar="DIR", help="(default: data/imgs)")
    data.add_argument("--masks", type=images, metavar="DIR", help="(default: data/masks)")
    data.add_argument("--val-images", type=images, metavar="DIR", help="score on these images")
    data.add_argument("--val-masks", type=images, metavar="DIR", help="and these masks")
    data.add_argument(
        "--validation", "-v", type=float, metavar="PERCENT",
        help="of the images kept back to score on, where no --val-images are given (default: 10)",
    )  # fmt: skip
    data.add_argument("--scale", "-s", type=float, help="of the images (default: 0.5)")
    data.add_argument("--crop", type=int, metavar="PIXELS", help="train on random squares")
    data.add_argument("--ignore-index", type=int, metavar="VALUE", help="mask value left out")
    data.add_argument("--bit-depth", type=int, metavar="BITS", help="of data in 16-bit images")
    _add_network_arguments(parser)
    _add_recipe_arguments(parser)
    _add_run_arguments(parser)


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--classes", "-c", type=int, help="(default: 2)")
    network.add_argument(
        "--class-names", type=names, metavar="NAME,NAME…", help="in the order of mask values"
    )
    network.add_argument(
        "--mask-values", type=mask_values, metavar="VALUE,VALUE…",
        help="of the classes in the masks, R:G:B for colours (default: 0 to classes - 1 where no "
        "mask holds another, else those that occur)",
    )  # fmt: skip
    network.add_argument("--channels", type=int, help="1 grey, 3 RGB, else bands (default: 3)")
    network.add_argument(
        "--width", type=int, help="channels of the first convolution (default: 64)"
    )
    network.add_argument(
        "--bilinear", action="store_true", default=None, help="upsample without weights"
    )
    network.add_argument(
        "--load", "-f", type=model_path, metavar="CHECKPOINT", help="start from these weights"
    )


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add flags that take the recipe's value where they are left out."""
    recipe = parser.add_argument_group("recipe (defaults: those of --recipe)")
    recipe.add_argument(
        "--recipe", choices=("reference", "modern"),
        help="reference: as Pytorch-UNet, RMSprop, 5 epochs, batches of 1, rate 1e-5; "
        "modern: AdamW, one-cycle, augmentation (default: reference)",
    )  # fmt: skip
    recipe.add_argument("--epochs", "-e", type=int)
    recipe.add_argument("--batch-size", "-b", type=int, help="over all processes of torchrun")
    recipe.add_argument("--learning-rate", "-l", type=float)
    recipe.add_argument("--optimizer", choices=("rmsprop", "adamw"))
    recipe.add_argument("--schedule", choices=("plateau", "onecycle", "cosine"))
    recipe.add_argument("--loss", choices=("ce+dice", "focal+dice"))
    recipe.add_argument(
        "--dice", choices=("all", "foreground"), help="classes that the Dice loss counts"
    )
    recipe.add_argument(
        "--loss-size",
        choices=("network", "mask"),
        help="where the loss is taken: at the network's size, or at the masks' own",
    )
    recipe.add_argument(
        "--class-weights", type=_class_weights, metavar="NUMBER,NUMBER…",
        help="of each class in the cross-entropy; auto: 1 / √(share of the pixels)",
    )  # fmt: skip
    recipe.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=None,
        help="random flips, quarter turns, scale, brightness and contrast",
    )  # fmt: skip
    recipe.add_argument(
        "--teacher", type=model_path, metavar="CHECKPOINT",
        help="learn the answers of this trained network too, as of a larger one",
    )  # fmt: skip
    recipe.add_argument(
        "--teacher-weight", type=float, metavar="SHARE",
        help="of the loss that is to be like the teacher (default: 0.6); the masks have the rest",
    )  # fmt: skip
    recipe.add_argument(
        "--ema", type=float, metavar="DECAY",
        help="score and keep the weights' running average; 0: those of the last step",
    )  # fmt: skip


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    out = writable_dir("a run is written to a folder")
    run.add_argument("--out", type=out, metavar="DIR", help="(default: runs/train, -2, -3 …)")
    run.add_argument("--seed", type=int, help="(default: 0)")
    run.add_argument(
        "--amp",
        action="store_true",
        default=None,
        help="compute in bfloat16, or float16 where the GPU lacks it, where that is safe",
    )
    run.add_argument(
        "--resume", type=model_path, metavar="RUN", help="go on with an interrupted run: its folder"
    )
    run.add_argument("--workers", type=int, metavar="N", help="threads that make batches ahead")
    run.add_argument(
        "--wandb", action=argparse.BooleanOptionalAction, default=None,
        help="log to Weights & Biases too",
    )  # fmt: skip
    run.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(args: argparse.Namespace) -> int:
    with patient_threads():
        from ..training.train import train
    from ..contract.log import log

    log.setLevel(logging.INFO)
    found = train(options_from_arguments(args), given_options(args))
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        sys.stdout.write(f"{found}\n")
    return 0


def options_from_arguments(args: argparse.Namespace) -> TrainOptions:
    from ..training.options import TrainOptions

    given = {f.name: getattr(args, f.name) for f in fields(TrainOptions) if f.name != "recipe"}
    given = {name: value for name, value in given.items() if value is not None}
    return TrainOptions(recipe=_recipe_from_arguments(args), **given)


def given_options(args: argparse.Namespace) -> set[str]:
    """Names of the options that flags speak of; "recipe" is one of them."""
    return {name for name, value in vars(args).items() if value is not None}


def _recipe_from_arguments(args: argparse.Namespace) -> RecipeOptions:
    from ..training.options import RECIPES

    base = RECIPES[args.recipe or "reference"]
    given = {f.name: getattr(args, f.name) for f in fields(base)}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _class_weights(text: str) -> tuple[float, ...] | str:
    expected = "auto, or numbers such as 1,5,5,9"
    return text if text == "auto" else tuple(number(part, expected) for part in text.split(","))
