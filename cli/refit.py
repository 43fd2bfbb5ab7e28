"""unetrt refit: new weights of the same net into an engine directory, past its gate."""

from __future__ import annotations

import argparse
import sys

from .build import add_gate_arguments, failed_gate_shown, gate_options, gate_text
from .shared import model_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("engine", type=model_path, metavar="ENGINE_DIR", help="replaced when it passes")
    add("checkpoint", type=model_path, metavar="CHECKPOINT", help="the new weights")
    add_gate_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..export.refit import refit_engine

    with failed_gate_shown():
        manifest, gate = refit_engine(args.engine, args.checkpoint, gate_options(args))
    head = f"{args.engine}: {manifest.backend} {manifest.backend_version} {manifest.precision}"
    lines = [head, f"weights of {args.checkpoint}", gate_text(gate), ""]
    sys.stdout.write("\n".join(lines))
    return 0
