"""Whether loading starves training: the loop against its own steps without any loading.

python -m unetrt.bench.training --images DIR --masks DIR --classes 4 --channels 1 --width 16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..contract.patience import patient_threads
from ..training.options import RECIPES, TrainOptions
from .text import print_lines


def _options(args: argparse.Namespace) -> TrainOptions:
    return TrainOptions(
        images=args.images,
        masks=args.masks,
        classes=args.classes,
        channels=args.channels,
        width=args.width,
        scale=args.scale,
        amp=args.amp,
        ignore_index=args.ignore_index,
        recipe=replace(RECIPES[args.recipe], batch_size=args.batch_size),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 2 where it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m unetrt.bench.training", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    for name, default in (("classes", 2), ("channels", 3), ("width", 64), ("batch-size", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ignore-index", type=int)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="reference")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error(f"argument --repeats: {args.repeats}, not at least 1")
    if args.seconds <= 0:
        parser.error(f"argument --seconds: {args.seconds:g}, not above 0")

    def measure() -> list[str]:
        with patient_threads():  # as `unetrt train` has them
            from .training_loop import measure_training
        from .machine import describe_bench_machine

        rows = measure_training(_options(args), args.seconds, args.repeats)
        machine = describe_bench_machine()
        told = [f"{key}: {machine[key]}" for key in sorted(machine)]
        return told + [
            f"{row.name:28}{row.images_per_second:8.1f} images/s  {row.ratio:.3f}" for row in rows
        ]

    return print_lines(parser.prog, measure)


if __name__ == "__main__":
    sys.exit(main())
