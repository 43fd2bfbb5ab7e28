"""unetrt convert: a checkpoint in the bare form that Pytorch-UNet's predict.py loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .shared import (
    WHOLE_COPY,
    add_override_arguments,
    local,
    model_path,
    overrides_from_args,
)

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=model_path, metavar="CHECKPOINT")
    output = local("a checkpoint is written to a file", WHOLE_COPY)
    parser.add_argument("-o", "--output", type=output, required=True, metavar="FILE.pth")
    add_override_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..contract.log import log
    from ..training.checkpoint import bare_differences, read_checkpoint, write_bare

    checkpoint = read_checkpoint(args.checkpoint).with_overrides(overrides_from_args(args))
    _check_output(args.output, checkpoint)
    write_bare(args.output, checkpoint)
    spec = checkpoint.spec
    for difference in bare_differences(spec):
        log.warning("Pytorch-UNet's predict.py: %s", difference)
    bilinear = " --bilinear" if spec.bilinear else ""
    sys.stdout.write(
        f"{args.output}: for predict.py --classes {spec.classes} --scale {spec.scale}{bilinear}\n"
    )
    return 0


def _check_output(path: Path, checkpoint: Checkpoint) -> None:
    """Raise UserError where the bare form would take the place of anything but itself.

    A checkpoint of a run cannot be made again from it, nor can a network of Pytorch-UNet's own.
    """
    from ..contract.errors import UserError, as_word
    from ..contract.files import require_place
    from ..training.checkpoint import is_bare_of

    require_place(path, "bare.pth")
    if path.exists() and not is_bare_of(path, checkpoint):
        raise UserError(
            f"convert would replace {path}",
            seen="a file that is not the bare form of these weights",
            expected="a new file, or one that convert has written of this checkpoint",
            hint=f"-o {as_word(path.with_name(f'{path.stem}-bare.pth'))}",
        )
