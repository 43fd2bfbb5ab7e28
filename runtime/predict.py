"""The batch job: images → mask files, one summary."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..contract.errors import ImageError, UserError
from ..contract.files import write_atomically
from ..contract.images import read_image
from ..contract.progress import show_progress
from ..contract.resize import network_input
from ..contract.spec import ModelSpec
from ..contract.types import U8
from ..engine.base import Engine
from . import rle
from .encode import MaskFormat, check_output_suffix, encode_mask, resolve_format
from .journal import Journal, JournalOptions, Stamp, remove_temporaries
from .overlay import encode_overlay
from .pipeline import Loaded, PipelineOptions, Result, run_pipeline
from .plan import Task

Look = Callable[[Task, U8], None]
"""Called with every mask (H, W) of class indices, in a thread."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """bit_depth: of 16-bit files whose values fill fewer bits (12 for most cameras).

    strict: stop at the first image that fails. journal: None keeps none, so that nothing resumes.
    """

    format: MaskFormat = "auto"
    bit_depth: int | None = None
    strict: bool = False
    journal: JournalOptions | None = None
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


@dataclass
class Summary:
    """planned = done + failed + skipped, always; failures: input and reason.

    skipped: done by an earlier run, and what a run that was stopped has left.
    """

    planned: int
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    left: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "left"}

    def fail(self, source: Path, reason: str) -> None:
        self.failed += 1
        self.failures.append({"input": str(source), "reason": reason})


def predict_masks(
    engine: Engine,
    tasks: Sequence[Task],
    options: PredictOptions,
    look: Look | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Write the mask of every task, each whole or not at all.

    An image that cannot be read costs itself alone and is listed. Once `stop` is set, what is in
    flight is finished and the rest is left. Raises UserError when masks cannot be written (a full
    disk, no permission) or the journal is that of another job.
    """
    fmt = resolve_format(options.format, engine.spec)
    for task in tasks:
        if task.output is not None:
            check_output_suffix(task.output, engine.spec, fmt)
    with ExitStack() as stack:
        journal = None
        if options.journal is not None:
            header = _must_match(engine, fmt, options)
            _make_folder(options.journal.output_dir)
            journal = stack.enter_context(Journal(options.journal, header))
            overlays = {task.overlay.parent for task in tasks if task.overlay is not None}
            for folder in (options.journal.output_dir, *_topmost(overlays)):
                remove_temporaries(folder)
        job = _Job(engine, fmt, options, look, journal)
        return job.run(tasks, stop or threading.Event())


def _must_match(engine: Engine, fmt: MaskFormat, options: PredictOptions) -> dict[str, Any]:
    """What changes a mask or its name."""
    return {
        "backend": engine.backend,
        "precision": engine.precision,
        "format": fmt,
        "bit_depth": options.bit_depth,
        "spec": asdict(engine.spec),
    }


class _Job:
    """Loads and writes in the pipeline's threads; counts and keeps the journal in the caller's."""

    def __init__(
        self,
        engine: Engine,
        fmt: MaskFormat,
        options: PredictOptions,
        look: Look | None,
        journal: Journal | None,
    ) -> None:
        self.engine, self.fmt, self.options = engine, fmt, options
        self.look, self.journal = look, journal
        # From the threads to the journal; what is in flight and no more.
        self.stamps: dict[Task, Stamp] = {}
        self.masks: dict[Task, dict[str, Any]] = {}

    def run(self, tasks: Sequence[Task], stop: threading.Event) -> Summary:
        left = tasks if self.journal is None else self.journal.remaining(tasks)
        for folder in {path.parent for task in left for path in task.files}:
            _make_folder(folder)
        summary = Summary(len(tasks), skipped=len(tasks) - len(left))
        what = f"predict ({summary.skipped} done before)" if summary.skipped else "predict"
        with show_progress(what, len(left)) as advance:
            for result in self._results(left, lambda: stop.is_set() or self._must_stop(summary)):
                advance(1)
                self._count(result, summary)
        summary.left = len(left) - summary.done - summary.failed
        summary.skipped += summary.left
        if self.fmt == "rle" and not summary.left:
            self._write_coco(tasks)
        return summary

    def _must_stop(self, summary: Summary) -> bool:
        return self.options.strict and summary.failed > 0

    def _results(self, left: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Result[Task]]:
        pipeline = self.options.pipeline
        if len(left) == 1:  # a single image asks for a slot of one
            pipeline = replace(pipeline, batch=self.engine.min_batch, slots=1)
        return run_pipeline(self.engine, left, self._load, self._consume, pipeline, stop)

    def _load(self, task: Task) -> Loaded:
        self.stamps[task] = _stamp(task.source)
        return network_input(task.source, self.engine.spec, bit_depth=self.options.bit_depth)

    def _consume(self, task: Task, mask: U8) -> None:
        if self.look is not None:
            self.look(task, mask)
        if self.fmt == "rle":
            self.masks[task] = rle.rle_from_mask(mask)
        if task.overlay is not None:
            image = read_image(task.source, 3, bit_depth=self.options.bit_depth)
            if image.shape[:2] != mask.shape:
                raise ImageError(f"{task.source} was changed while it was worked on")
            _write(task.overlay, encode_overlay(image, mask))
        if task.output is not None:
            data = encode_mask(mask, self.engine.spec, self.fmt, task.output.suffix)
            _write(task.output, data)

    def _count(self, result: Result[Task], summary: Summary) -> None:
        task = result.task
        stamp, mask = self.stamps.pop(task, None), self.masks.pop(task, None)
        if result.error is None:
            summary.done += 1
            if self.journal is not None and stamp is not None:
                self.journal.record(task, stamp, mask)
            return
        summary.fail(task.source, result.reason)
        if self.journal is not None:
            _remove_stale(task)
            self.journal.record_failure(task, result.reason)

    def _write_coco(self, tasks: Sequence[Task]) -> None:
        journal = self.journal
        if journal is None:
            return
        path = journal.output_dir / rle.NAME
        with _writing(path):
            rle.write_coco(path, lambda: journal.recorded_masks(tasks), self.engine.spec)


def _topmost(folders: set[Path]) -> list[Path]:
    """Those that lie in none of the others."""
    return [folder for folder in folders if folders.isdisjoint(folder.parents)]


def _stamp(source: Path) -> Stamp:
    """What the journal knows an image by, taken before it is read. ImageError: no file."""
    try:
        status = source.stat()
    except OSError as error:
        seen = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ImageError(f"no image at {source}", seen=seen) from error
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ImageError(f"no image at {source}", seen="a pipe or a device")
    return status.st_size, status.st_mtime_ns


def _remove_stale(task: Task) -> None:
    """A failed image has no mask: what an earlier run made of it is not its mask any more."""
    if task.source.exists():
        for path in task.files:
            with _writing(path):
                path.unlink(missing_ok=True)


def check_reference_flags(spec: ModelSpec, classes: int | None, bilinear: bool) -> None:
    """Pytorch-UNet's predict.py is told what the network is; ours knows. Raise when they differ."""
    if classes is not None and classes != spec.classes:
        raise UserError(
            "the model has another number of classes",
            seen=f"--classes {classes}",
            expected=spec.classes,
            hint="leave --classes out: the model knows its own",
        )
    if bilinear and not spec.bilinear:
        raise UserError(
            "the model upsamples by transposed convolution",
            seen="--bilinear",
            expected="no --bilinear",
            hint="leave --bilinear out: the model knows its own",
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the output folder {folder}",
            seen=error,
            expected="a folder that can be made and written to",
            hint="--output-dir DIR   with another DIR",
        ) from error


def _write(path: Path, data: bytes) -> None:
    with _writing(path):
        write_atomically(path, data)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            seen=error,
            expected="a folder that takes files",
            hint="free the disk or the folder, then run again",
        ) from error
