"""unetrt convert: a checkpoint in the bare form that Pytorch-UNet's predict.py loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .shared import add_override_arguments, overrides_from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pth")
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..contract.errors import UserError
    from ..contract.log import log
    from ..training.checkpoint import bare_differences, read_checkpoint, write_bare

    if not args.output.parent.is_dir():
        raise UserError(
            f"no folder {args.output.parent} to write to",
            seen=args.output,
            expected="a file in a folder that is there",
            hint=f"mkdir -p {args.output.parent}",
        )
    checkpoint = read_checkpoint(args.checkpoint).with_overrides(overrides_from_args(args))
    write_bare(args.output, checkpoint)
    spec = checkpoint.spec
    for difference in bare_differences(spec):
        log.warning("Pytorch-UNet's predict.py: %s", difference)
    bilinear = " --bilinear" if spec.bilinear else ""
    sys.stdout.write(
        f"{args.output}: for predict.py --classes {spec.classes} --scale {spec.scale}{bilinear}\n"
    )
    return 0
