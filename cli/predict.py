"""unetrt predict: images to masks."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .predict_many import add_many_arguments, check_many_arguments, crew_from_args, merge
from .shared import (
    MODEL_HELP,
    add_bit_depth_argument,
    add_engine_arguments,
    add_json_argument,
    local,
    model_path,
    place,
    require_done,
    show_failures,
    trace_file,
    whole,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runtime.plan import Task
    from ..runtime.predict import PredictOptions, Summary
    from ..runtime.trace import NoTrace

DEFAULT = Path("MODEL.pth")
"""As in Pytorch-UNet's predict.py."""

MOST_SLOTS = 256
"""Each has memory of its own from the start."""

TILES = (512, 65_536)
"""Least and most of --tile: of a smaller one hardly anything would be kept."""

INTERRUPTED = 130
STOPPING = "\nstopping: what is in flight is finished; once more ends at once\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", "-m", type=model_path, default=DEFAULT, metavar="MODEL", help=MODEL_HELP)
    add("--input", "-i", nargs="+", action="extend", default=[],
        help="images, folders, globs, @LIST, or -")  # fmt: skip
    mask = local("-o names masks to be written to files", "--output-dir DIR   takes addresses too")
    add("--output", "-o", nargs="+", action="extend", type=mask, default=[], metavar="FILE",
        help="one an image")  # fmt: skip
    add("--output-dir", type=place, metavar="DIR", help="masks below DIR, the inputs' tree kept")
    add("--no-save", "-n", action="store_true", help="write no masks")
    add("--viz", "-v", action="store_true", help="show each image with its mask")
    add("--classes", "-c", type=int, help="checked against the model, which knows its classes")
    add("--bilinear", action="store_true", help="checked against the model")
    add("--overlay", type=place, metavar="DIR", help="images with their masks over them, below DIR")
    add("--restart", action="store_true", help="make every mask again, also those in the journal")
    add("--strict", action="store_true", help="stop at the first image that fails")
    formats = ("auto", "index", "palette", "bilevel", "npy", "rle", "prob", "prob-npy")
    add("--format", choices=formats, default="auto", help="of the mask files (default: auto)")
    add_bit_depth_argument(parser)
    fast = "JPEG at reduced size, if that keeps the masks of some of the images"
    add("--fast-decode", action="store_true", help=fast)
    most = whole(1, MOST_SLOTS)
    add("--slots", type=most, help="batches in flight (default: the engine's)")
    add("--tile", type=whole(*TILES), metavar="PIXELS",
        help="longest side of a network input in one piece (default: by memory)")  # fmt: skip
    add("--trace", type=trace_file, metavar="FILE", help="a timeline, for a browser's trace viewer")
    add_json_argument(parser, "planned, done, failed, skipped and failures")
    add_engine_arguments(parser)
    add_many_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..contract.errors import UserError
    from ..runtime.digest import digest_if_there, require_unchanged
    from ..runtime.predict import Summary, check_reference_flags, run_job
    from ..runtime.stop import interrupted_by_signals, stop_on_signals
    from ..runtime.trace import NO_TRACE, Trace
    from ..runtime.viz import MaskViewer

    if args.merge:
        _check_merged_alone(args)
        return merge(args)
    check_many_arguments(args)
    _check_files(args)
    args.result = _result_from_format(args)
    viewer = MaskViewer(args.bit_depth) if args.viz else None
    if viewer is not None:
        viewer.require_display()
    trace = NO_TRACE if args.trace is None else Trace()
    summary = Summary()
    with interrupted_by_signals():  # a plan of millions takes its time, and nothing is written yet
        tasks = _tasks_from_args(args)
        _check_files_apart(args, tasks)
        _check_model(args.model)
        digest = digest_if_there(args.model)
    look = viewer.keep if viewer else None
    with stop_on_signals(STOPPING) as stop, crew_from_args(args, look, stop) as crew:
        require_unchanged(args.model, digest)
        check_reference_flags(crew.opened.spec, args.classes, args.bilinear)
        options = _options_from_args(args, digest, trace)
        try:
            run_job(crew, tasks, options, stop, summary)
        except (UserError, OSError):
            _report_ended(args, summary, trace)
            raise
    if viewer and not stop.is_set():
        viewer.show(crew.opened.spec)
    interrupted = bool(summary.left) and stop.is_set()
    if interrupted:
        _report_interrupted(args, summary, options.journal is not None)
    else:
        _report(args, summary)
    _write_results(args, summary, trace)
    return INTERRUPTED if interrupted else _status(summary)


def _check_merged_alone(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that has another value than its default: --merge does no work."""
    from ..contract.errors import UserError

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = {**vars(parser.parse_args([])), "merge": args.merge, "json": args.json}
    given = [name for name, value in vars(args).items() if value != usual[name]]
    if given:
        raise UserError(
            "--merge makes no masks",
            seen=", ".join("--" + name.replace("_", "-") for name in given),
            expected="--merge alone, or with --json",
            hint="unetrt predict --merge DIR … --json FILE",
        )


def _check_files(args: argparse.Namespace) -> None:
    """Raise UserError where the timeline would take the place of the summary."""
    from ..contract.errors import UserError

    if args.json and args.trace and args.json.resolve() == args.trace.resolve():
        raise UserError(
            "--json and --trace name one file",
            seen=args.trace,
            expected="a file each",
            hint="--json FILE --trace OTHER_FILE",
        )


def _check_files_apart(args: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Raise UserError where the summary or the timeline would replace an image or its mask."""
    from ..contract.errors import UserError
    from ..runtime.inputs import located

    flags = {"--json": args.json, "--trace": args.trace}
    given = {flag: path for flag, path in flags.items() if path and str(path) != "-"}
    flag_of = dict(zip(located(given.values()), given, strict=True))
    used = (path for task in tasks for path in (task.source, *task.files))
    for path in located(used) if flag_of else ():
        if path in flag_of:
            raise UserError(
                f"{flag_of[path]} names an image or a mask of this job",
                seen=path,
                expected="a file of its own",
                hint=f"{flag_of[path]} OTHER_FILE",
            )


def _check_model(model: Path) -> None:
    """Raise UserError where no model is named and none has the default's name."""
    from ..contract.errors import UserError

    if model == DEFAULT and not model.exists():
        hint = "-m CHECKPOINT, ONNX file or ENGINE_DIR"
        raise UserError("no model is named", seen=f"no {model}, the default", hint=hint)


def _result_from_format(args: argparse.Namespace) -> str:
    """What the model is to give. Raises UserError for what shows masks where there are none."""
    from ..contract.errors import UserError

    if args.format not in ("prob", "prob-npy"):
        return "mask"
    shown = {"--viz": args.viz, "--overlay": args.overlay is not None}
    for flag in (flag for flag, given in shown.items() if given):
        raise UserError(
            f"{flag} shows masks",
            seen=f"{flag} with --format {args.format}",
            expected="a format of masks",
            hint=f"leave {flag} out, or --format auto",
        )
    return "prob"


def _options_from_args(args: argparse.Namespace, model: str, trace: NoTrace) -> PredictOptions:
    """model: its digest."""
    from ..runtime.journal import JournalOptions
    from ..runtime.pipeline import PipelineOptions
    from ..runtime.predict import PredictOptions

    journal = None
    if args.output_dir is not None and not args.no_save:
        journal = JournalOptions(
            output_dir=args.output_dir,
            model=model,
            restart=args.restart,
            shard=args.shard,
            overlay_dir=args.overlay,
        )
    return PredictOptions(
        format=args.format,
        bit_depth=args.bit_depth,
        fast_decode=args.fast_decode,
        strict=args.strict,
        journal=journal,
        pipeline=PipelineOptions(batch=args.batch, slots=args.slots, tile=args.tile, trace=trace),
    )


def _tasks_from_args(args: argparse.Namespace) -> list[Task]:
    from ..contract.errors import UserError
    from ..runtime.ownership import recorded_outputs
    from ..runtime.plan import plan_tasks, tasks_of_shard

    if args.output_dir is None and (args.restart or args.format == "rle"):
        what = "--restart" if args.restart else "--format rle"
        hint = f"{what} --output-dir DIR"
        raise UserError(f"{what} needs a folder of masks", seen="no --output-dir", hint=hint)
    names = not args.no_save and args.format != "rle"
    goes_on = args.output_dir is not None and not args.restart and names
    tasks = plan_tasks(
        args.input,
        outputs=args.output,
        output_dir=args.output_dir,
        save=names,
        suffix=".npy" if args.format in ("npy", "prob-npy") else ".png",
        overlay_dir=args.overlay,
        recorded=recorded_outputs(args.output_dir) if goes_on else None,
    )
    return tasks if args.shard is None else tasks_of_shard(tasks, args.shard, args.output_dir)


def _report_interrupted(args: argparse.Namespace, summary: Summary, resumable: bool) -> None:
    _report(args, summary)
    done = f"interrupted: {summary.done} done, {summary.failed} failed, {summary.left} left"
    arguments = [a for a in sys.argv[1:] if not (len(a) > 2 and "--restart".startswith(a))]
    command = shlex.join(["unetrt", *arguments])
    goes_on = "goes on" if resumable else "starts over (only --output-dir keeps a journal)"
    sys.stderr.write(f"{done}\nHint: {command}   {goes_on}\n")


def _report_ended(args: argparse.Namespace, summary: Summary, trace: NoTrace) -> None:
    """What a job has done that an error has ended; nothing where it had not begun."""
    from ..contract.errors import UserError

    if not summary.planned:
        return
    _report(args, summary)
    try:
        _write_results(args, summary, trace)
    except UserError as error:  # the disk may be full: what ended the job is told, and this too
        sys.stderr.write(f"{error.reason}\n")


def _show_failures(summary: Summary) -> None:
    show_failures([(failure["input"], failure["reason"]) for failure in summary.failures])


def _report(args: argparse.Namespace, summary: Summary) -> None:
    _show_failures(summary)
    stream = sys.stderr if str(args.json) == "-" else sys.stdout
    stream.write(
        f"{summary.planned} planned = {summary.done} done + {summary.failed} failed"
        f" + {summary.skipped} skipped\n"
    )


def _write_results(args: argparse.Namespace, summary: Summary, trace: NoTrace) -> None:
    """--json and --trace; a trace that cannot be written costs no summary."""
    from ..contract.errors import UserError

    write_json(args.json, summary.to_dict())
    if args.trace is None:
        return
    try:
        trace.write(args.trace)
    except OSError as error:
        hint = "--trace FILE   with another FILE"
        raise UserError(f"cannot write {args.trace}", seen=error, hint=hint) from error


def _status(summary: Summary) -> int:
    if summary.planned:  # a shard may hold no image
        require_done(summary.planned, summary.failed)
    return 1 if summary.failed else 0
