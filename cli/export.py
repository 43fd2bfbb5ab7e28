"""unetrt export: a checkpoint as one ONNX file."""

from __future__ import annotations

import argparse
import sys

from .shared import (
    WHOLE_COPY,
    add_bit_depth_argument,
    add_override_arguments,
    local,
    model_path,
    overrides_from_args,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=model_path, metavar="CHECKPOINT")
    onnx = local("export writes to a file", WHOLE_COPY)
    add("-o", "--output", type=onnx, required=True, metavar="FILE.onnx")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="default: fp32")
    add("--result", choices=("mask", "prob"), default="mask", help="default: mask")
    add_override_arguments(parser)
    add_bit_depth_argument(parser)


def run(args: argparse.Namespace) -> int:
    from ..export.onnx_export import export_checkpoint

    spec = export_checkpoint(
        args.checkpoint, args.output, args.precision, overrides_from_args(args, args.bit_depth)
    )
    size = args.output.stat().st_size / 1e6
    sys.stdout.write(
        f"{args.output}: {size:.1f} MB, {args.precision}, {spec.channels} channels, "
        f"{spec.classes} classes, scale {spec.scale}\n"
    )
    return 0
