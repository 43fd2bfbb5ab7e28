"""One process's share of a batch job: images → mask files."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..contract.addresses import is_address
from ..contract.errors import DeviceMemoryError, ImageError, UserError, first_line
from ..contract.files import write_atomically
from ..contract.headers import check_file_size
from ..contract.images import read_reduced, read_shown
from ..contract.resize import checked_input_size, resize_image
from ..contract.spec import ModelSpec
from ..contract.types import U8
from ..engine.base import Engine, memory_errors
from . import rle
from .encode import MaskFormat, encode_mask
from .journal import JournalOptions
from .loading import Decoded
from .overlay import encode_overlay
from .pipeline import PipelineOptions, Result, run_pipeline
from .plan import Task
from .stamps import Stamp, stamp_from_status, status_of

ITS_OWN = frozenset({errno.ENAMETOOLONG, errno.EISDIR})
"""What is wrong with the name of one output, not with the disk."""

Look = Callable[[Task, U8], None]
"""Called with every mask (H, W) of class indices, in a thread."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """bit_depth: of 16-bit files whose values fill fewer bits, in place of the spec's.

    fast_decode: JPEG files at a reduced size, where the network's input is at most half of theirs;
    see fast_decode.py. strict: stop at the first image that fails. journal: None keeps none, so
    that nothing resumes.
    """

    format: MaskFormat = "auto"
    bit_depth: int | None = None
    fast_decode: bool = False
    strict: bool = False
    journal: JournalOptions | None = None
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


@dataclass(frozen=True)
class Outcome:
    """What became of a task. reason: why it failed, empty when its files are in place.

    stamp: of its image, just before it was read. mask: for the journal, where no file holds it.
    """

    task: Task
    reason: str = ""
    stamp: Stamp | None = None
    mask: dict[str, Any] | None = None


def options_for(options: PredictOptions, count: int, min_batch: int) -> PredictOptions:
    """The options of a job of `count` images: a single one asks for a slot of one."""
    if count != 1:
        return options
    return replace(options, pipeline=replace(options.pipeline, batch=min_batch, single=True))


class OutputError(UserError):
    """An output cannot be written: what ends a job, whoever met it."""


def write_masks(
    engine: Engine,
    tasks: Iterable[Task],
    options: PredictOptions,
    look: Look | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Make the files of every task and yield what became of it, in no fixed order.

    options.format is one that resolve_format gave. An image that cannot be used costs itself
    alone; raises OutputError when a file cannot be written. stop: as in run_pipeline.
    """
    work = Work(engine.spec, options, look)
    results = run_pipeline(
        engine, tasks, work.load, work.consume, options.pipeline, stop, lend=look is None
    )
    for result in results:
        yield work.outcome(result)


class Work:
    """What is done with a task before and after the engine, and what that leaves for its outcome.

    load and consume may run in any threads.
    """

    def __init__(self, spec: ModelSpec, options: PredictOptions, look: Look | None = None) -> None:
        self.spec, self.options, self.look = spec, options, look
        self.trace = options.pipeline.trace
        self.depth = spec.depth(options.bit_depth)
        # What is in flight and no more.
        self.stamps: dict[Task, Stamp] = {}
        self.masks: dict[Task, dict[str, Any]] = {}

    def load(self, task: Task) -> Decoded:
        self.stamps[task] = _stamp(task.source)
        spec = self.spec
        least = spec.input_size if self.options.fast_decode else None
        with _enough_memory(task.source), self.trace.span("decode"):
            image, size = read_reduced(task.source, spec.channels, least, bit_depth=self.depth)
        input_size = checked_input_size(size, spec, task.source)

        def resized(out: U8 | None = None) -> U8:
            with _enough_memory(task.source), self.trace.span("resize"):
                return resize_image(image, input_size, spec.resize, out)

        return Decoded(input_size, size, resized)

    def consume(self, task: Task, mask: U8) -> None:
        with _enough_memory(task.source):
            self._consume(task, mask)

    def _consume(self, task: Task, mask: U8) -> None:
        if self.look is not None:
            self.look(task, mask)
        if self.options.format == "rle":
            self.masks[task] = rle.rle_from_mask(mask)
        if task.overlay is not None:
            image = read_shown(task.source, self.spec.channels, bit_depth=self.depth)
            if image.shape[:2] != mask.shape:
                raise ImageError(f"{task.source} was changed while it was worked on")
            _write(task.overlay, encode_overlay(image, mask))
        if task.output is not None:
            with self.trace.span("encode"):
                data = _encoded(mask, self.spec, self.options.format, task.output)
            with self.trace.span("write"):
                _write(task.output, data)

    def outcome(self, result: Result[Task]) -> Outcome:
        task = result.task
        stamp, mask = self.stamps.pop(task, None), self.masks.pop(task, None)
        return Outcome(task, result.reason, stamp, mask)


def _stamp(source: Path) -> Stamp:
    """What the journal knows an image by, taken before it is read. ImageError: no file."""
    try:
        status = status_of(source)
    except OSError as error:
        seen = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise ImageError(f"no image at {source}", seen=seen) from error
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ImageError(f"no image at {source}", seen="a pipe or a device")
    check_file_size(source, status.st_size)
    return stamp_from_status(source, status)


@contextmanager
def _enough_memory(source: Path) -> Iterator[None]:
    """An image that does not fit into the memory costs itself alone."""
    try:
        with memory_errors(str(source)):
            yield
    except DeviceMemoryError as error:
        hint = "cut it into smaller images"
        raise ImageError(error.message, seen=error.seen, hint=hint) from error


def _encoded(mask: U8, spec: ModelSpec, fmt: MaskFormat, path: Path) -> bytes:
    """A JPEG has no side above 65500, other formats bounds of their own: no fault of the disk."""
    try:
        return encode_mask(mask, spec, fmt, path.suffix)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"cannot encode {path}",
            seen=f"{mask.shape[-1]}x{mask.shape[-2]} pixels: {first_line(error)}",
            hint="name it .png",
        ) from error


def _write(path: Path, data: bytes) -> None:
    with writing(path):
        try:
            write_atomically(path, data)
        except OSError as error:
            if error.errno not in ITS_OWN:
                raise
            raise ImageError(f"cannot write {path}", seen=error.strerror) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = ("a folder that takes files", "free the disk or the folder, then run again")
        store = ("a store that takes files", "see to its server and your rights, then run again")
        expected, hint = store if is_address(path) else folder
        raise OutputError(
            f"cannot write {path}", seen=error, expected=expected, hint=hint
        ) from error
