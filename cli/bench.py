"""unetrt bench: every engine against the PyTorch baseline, speed and agreement."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from .shared import (
    MODEL_HELP,
    add_bit_depth_argument,
    add_device_argument,
    add_override_arguments,
    images,
    local,
    model_path,
    names,
    overrides_from_args,
    positive,
    seconds,
    share,
    size,
    writable_dir,
    wrong,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..bench.result import Bench
    from ..bench.slo import Slo
    from ..bench.table import BenchOptions

INTERRUPTED = 130
MAX_REGRESSION = 0.05
"""Of --compare, where none is asked for."""
MOST_SECONDS = 1_000_000
"""Eleven days: the system counts what it waits in milliseconds, of 31 bits."""
SAMPLES = 3
"""Images whose masks a report shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help_text = f"{MODEL_HELP}; the first checkpoint is the baseline, alone it brings its engines"
    add("models", type=model_path, nargs="+", metavar="MODEL", help=help_text)
    add("--images", type=images, required=True, metavar="DIR")
    add("--masks", type=images, metavar="DIR", help="the truth: mIoU, and its change, in each row")
    add("--limit", type=positive, default=64, help="images taken, all over DIR (default: 64)")
    add("--seconds", type=bounded_seconds, default=3.0, help="of each repeat (default: 3)")
    add("--repeats", type=positive, default=3, help="default: 3")
    add("--batch", type=positive, help="images a batch (default: the engine's)")
    add_device_argument(parser)
    add_override_arguments(parser)
    add_bit_depth_argument(parser)
    help_text = "also run benchmark_app or trtexec on the engines; always with a checkpoint alone"
    add("--peers", action="store_true", help=help_text)
    help_text = "batches, slots in flight and sizes of images, of the fastest engine"
    add("--sweep", action="store_true", help=help_text)
    help_text = "of --sweep, beside that of most images (default: half and twice its sides)"
    add("--sizes", type=sizes, default=(), metavar="HxW,…", help=help_text)
    help_text = "where each engine's own time goes, from its own profiler"
    add("--layers", action="store_true", help=help_text)
    help_text = "as p99=20ms: the highest throughput under it and the flags for it; sweeps"
    add("--slo", metavar="BOUND", help=help_text)
    help_text = "rows of a checkpoint alone that are left out, as torch-compile"
    add("--skip", type=names, default=(), metavar="ROW,…", help=help_text)
    help_text = "of a checkpoint alone: pictures to measure the ranges of int8 on"
    add("--calibration", type=images, metavar="DIR", help=help_text)
    help_text = "give a row up after so long (default: 1800 seconds)"
    add("--row-timeout", type=bounded_seconds, default=1800.0, metavar="SECONDS", help=help_text)
    report = writable_dir("a report is written to a folder")
    add("--report", type=report, metavar="DIR", help="write HTML, Markdown, CSV and JSON there")
    old = local("a report is read from a file")
    add("--compare", type=old, metavar="OLD.json", help="what changed since that report")
    help_text = "of --compare: exit 1 past it (default: 5%%)"
    add("--max-regression", type=share, metavar="SHARE", help=help_text)


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`256x256,512x640`: heights and widths of images."""
    from ..contract.images import MAX_PIXELS

    found = tuple(size(part) for part in text.split(","))
    if any(height * width > MAX_PIXELS for height, width in found):
        raise wrong(text, f"at most {MAX_PIXELS} pixels each")
    return found


def bounded_seconds(text: str) -> float:
    """At most MOST_SECONDS."""
    value = seconds(text)
    if value > MOST_SECONDS:
        raise wrong(text, f"seconds, above 0, at most {MOST_SECONDS:g}")
    return value


def run(args: argparse.Namespace) -> int:
    """0; 1: a required row without trusted numbers, a regression or nothing compared, an unmet SLO.

    130 when it was interrupted: what is finished is reported all the same.
    """
    from ..bench.compare import compare_lines, read_report
    from ..bench.report_files import GrowingReport
    from ..bench.slo import slo_from_text
    from ..bench.table import bench_models
    from ..contract.errors import UserError

    most = _most_from_args(args)
    slo = slo_from_text(args.slo) if args.slo else None
    before = read_report(args.compare) if args.compare else None
    report = GrowingReport(args.report, _command())
    bench = _with_answer(bench_models(args.models, _options(args, slo), report.write), slo)
    refused: UserError | None = None
    paths: list[Path] = []
    # Before anything is printed or compared: a long measurement is not lost to what follows it.
    try:
        paths = report.finish(bench)
    except UserError as error:
        refused = error
    finally:
        sys.stdout.write("\n".join(_lines(bench, args.layers)) + "\n")
    failed = any(row.required and not row.trusted for row in bench.rows)
    failed |= bench.slo is not None and not bench.slo.met
    if before is not None:
        found, worse = compare_lines(before, bench, most)
        sys.stdout.write("\n".join(["", f"compared with {args.compare}:", "", *found]) + "\n")
        failed |= worse
    if refused is not None:
        raise refused
    if paths:
        sys.stdout.write("report: " + ", ".join(map(str, paths)) + "\n")
    return INTERRUPTED if bench.interrupted else int(failed)


def _most_from_args(args: argparse.Namespace) -> float:
    """Of --max-regression. Raises UserError where there is nothing that it could bound."""
    from ..contract.errors import UserError

    most: float | None = args.max_regression
    if most is not None and args.compare is None:
        raise UserError(
            "--max-regression is a bound of --compare",
            seen=f"--max-regression {most:g} without --compare",
            expected="the report of an earlier bench to compare with",
            hint=f"--compare OLD.json --max-regression {most:g}; or leave it out",
        )
    return MAX_REGRESSION if most is None else most


def _command() -> str:
    return shlex.join(["unetrt", *sys.argv[1:]])


def _options(args: argparse.Namespace, slo: Slo | None) -> BenchOptions:
    from ..bench.slo import FEWEST
    from ..bench.table import BenchOptions

    return BenchOptions(
        images=args.images,
        masks=args.masks,
        limit=args.limit,
        seconds=args.seconds,
        repeats=args.repeats,
        batch=args.batch,
        device=args.device,
        overrides=overrides_from_args(args),
        bit_depth=args.bit_depth,
        peers=args.peers,
        sweep=args.sweep or slo is not None or bool(args.sizes),
        sweep_batches=FEWEST[slo.percentile] if slo else 0,
        sizes=args.sizes,
        row_timeout=args.row_timeout,
        samples=SAMPLES if args.report else 0,
        layers=args.layers,
        skip=args.skip,
        calibration=args.calibration,
    )


def _lines(bench: Bench, layers: bool) -> list[str]:
    """What the terminal shows: all rows, and of the fastest where its time goes."""
    from ..bench.class_report import class_lines
    from ..bench.report import (
        context_lines,
        detail_lines,
        fastest_row,
        stage_lines,
        sweep_lines,
        table_lines,
    )

    fastest = fastest_row(bench)
    lines = [*table_lines(bench), "", *detail_lines(bench), "", *class_lines(bench.rows), ""]
    lines += [*stage_lines([fastest]), ""] if fastest else []
    lines += [*_layer_lines(bench), ""] if layers else []
    lines += [*sweep_lines(bench.sweep), ""] if bench.sweep else []
    lines += [*bench.slo.lines, ""] if bench.slo else []
    return [*lines, *context_lines(bench)]


def _layer_lines(bench: Bench) -> list[str]:
    """Of the fastest row that a profiler ran on: PyTorch, which may be faster, has none."""
    from ..bench.layer_report import layer_lines
    from ..bench.report import fastest_row

    profiled = [row for row in bench.rows[1:] if row.result and row.result.layers]
    fastest = fastest_row(replace(bench, rows=(bench.rows[0], *profiled)))
    if fastest is None:
        return ["no layers: no row with trusted masks has a profiler of its own"]
    return layer_lines([fastest], bench.peaks)


def _with_answer(bench: Bench, slo: Slo | None) -> Bench:
    """The bench with the answer to --slo, which its report holds too."""
    from ..bench.slo import answer_slo

    if slo is None:
        return bench
    return replace(bench, slo=answer_slo(bench.sweep, slo, bench.interrupted))
