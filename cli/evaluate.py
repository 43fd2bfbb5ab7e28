"""unetrt evaluate: a model's masks against the truth."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .shared import (
    MODEL_HELP,
    add_bit_depth_argument,
    add_engine_arguments,
    add_json_argument,
    engine_from_args,
    images,
    model_path,
    require_done,
    show_failures,
    write_json,
)

if TYPE_CHECKING:
    from ..contract.metrics import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    add("--images", type=images, required=True, metavar="DIR")
    add("--masks", type=images, required=True, metavar="DIR")
    add_bit_depth_argument(parser)
    add_json_argument(parser, "the scores, and what has none")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..runtime.evaluate import evaluate_engine
    from ..runtime.pipeline import PipelineOptions

    with engine_from_args(args) as engine:
        options = PipelineOptions(batch=args.batch)
        evaluation = evaluate_engine(engine, args.images, args.masks, options, args.bit_depth)
    show_failures(evaluation.failures)
    scored = evaluation.images - len(evaluation.failures)
    if scored and str(args.json) != "-":
        sys.stdout.write(_table(evaluation.scores))
        if evaluation.failures:
            failed = len(evaluation.failures)
            sys.stdout.write(f"of {scored} images; {failed} could not be scored\n")
    write_json(args.json, evaluation.to_dict())
    expected = "images that can be read, with masks of their size and of the model's values"
    require_done(evaluation.images, len(evaluation.failures), expected)
    return 1 if evaluation.failures else 0


def _table(scores: Scores) -> str:
    lines = [f"{'class':20}{'IoU':>8}{'Dice':>8}"]
    lines += [f"{c.name:20}{_number(c.iou)}{_number(c.dice)}" for c in scores.classes]
    means = f"{_number(scores.foreground_miou)}{_number(scores.foreground_dice)}"
    lines.append(f"{'foreground mean':20}{means}")
    lines.append(f"{'pixel accuracy':20}{_number(scores.pixel_accuracy)}")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return f"{'absent':>8}" if value is None else f"{value:8.4f}"
