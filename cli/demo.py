"""unetrt demo: the whole chain on pictures that it draws itself."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ..contract.patience import patient_threads
from .shared import WHOLE_COPY, local


def add_arguments(parser: argparse.ArgumentParser) -> None:
    out = local("the demo is written to a folder", WHOLE_COPY)
    parser.add_argument(
        "--out", type=out, default=Path("demo"), metavar="DIR", help="default: demo"
    )


def run(args: argparse.Namespace) -> int:
    with patient_threads():
        from ..bench.demo import DemoOptions, run_demo
    from ..bench.report import context_lines, table_lines
    from ..contract.log import log

    log.setLevel(logging.INFO)
    result = run_demo(args.out, DemoOptions(), "unetrt demo")
    lines = [""]
    if result.bench is not None:
        lines += [*table_lines(result.bench), "", *context_lines(result.bench), ""]
    for name, evaluation in (("PyTorch", result.pytorch), ("engine", result.engine)):
        scores = evaluation.scores
        lines.append(
            f"{name:8} foreground mIoU {scores.foreground_miou:.4f} on {evaluation.images} "
            f"fresh pictures"
        )
    lines.append(f"picture: {result.picture}   report: {args.out / 'report'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
