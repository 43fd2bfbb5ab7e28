"""The batch job: images → mask files, one summary."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..contract.addresses import is_address, store_errors
from ..contract.errors import UserError
from ..contract.progress import show_progress
from ..contract.spec import ModelSpec
from ..engine.base import Engine
from . import rle
from .address_journal import AddressJournal
from .cutter import check_tile
from .encode import check_output_suffix, resolve_format
from .fast_decode import require_fast_decode
from .journal import Journal
from .plan import Task
from .stamps import status_of
from .temporaries import remove_temporaries_of
from .work import Look as Look
from .work import Outcome, OutputError, options_for, write_masks, writing
from .work import PredictOptions as PredictOptions
from .worker import Opened, opened_from_engine


@dataclass
class Summary:
    """planned = done + failed + skipped, always; failures: input and reason.

    skipped: done by an earlier run, and what a run that was stopped has left.
    """

    planned: int = 0
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
    return run_job(OneEngine(engine, look), tasks, options, stop or threading.Event())


def run_job(
    crew: Crew,
    tasks: Sequence[Task],
    options: PredictOptions,
    stop: threading.Event,
    summary: Summary | None = None,
) -> Summary:
    """predict_masks by a crew.

    summary: filled as the job goes, so that it is there too where an error ends the job; its
    `planned` stays 0 until the first image may be touched.
    """
    summary = Summary() if summary is None else summary
    opened = crew.opened
    options = replace(options, format=resolve_format(options.format, opened.spec))
    # Of all that is planned, not of what is left: a job that goes on makes its batches as before.
    options = options_for(options, len(tasks), opened.min_batch)
    _check_rle(options)
    check_tile(opened.spec, options.pipeline.tile)
    for task in tasks:
        if task.output is not None:
            check_output_suffix(task.output, opened.spec, options.format)
    if options.fast_decode:
        measured = require_fast_decode(crew.engine if isinstance(crew, OneEngine) else None, tasks)
        options = replace(options, fast_decode=measured)
    with ExitStack() as stack:
        journal: Journal | AddressJournal | None = None
        if options.journal is not None:
            _make_folder(options.journal.output_dir)
            header = _must_match(opened, options)
            if is_address(options.journal.output_dir):
                journal = stack.enter_context(AddressJournal(options.journal, header))
            else:
                journal = stack.enter_context(Journal(options.journal, header))
        _Job(crew, options, journal, summary).run(tasks, stop)
    return summary


def _must_match(opened: Opened, options: PredictOptions) -> dict[str, Any]:
    """What changes a mask or its name."""
    return {
        "backend": opened.backend,
        "precision": opened.precision,
        "format": options.format,
        "bit_depth": opened.spec.depth(options.bit_depth),
        "fast_decode": options.fast_decode,
        "spec": asdict(opened.spec),
    }


def _check_rle(options: PredictOptions) -> None:
    """Raise UserError where the one file of masks cannot be kept."""
    journal = options.journal
    if options.format != "rle" or journal is None:
        return
    if journal.shard is None and not is_address(journal.output_dir):
        return
    raise UserError(
        "rle is one file for the whole job, which grows in a folder of this machine",
        seen=f"--format rle with {'--shard' if journal.shard else journal.output_dir}",
        hint="--format index   writes a file an image",
    )


class Crew(Protocol):
    """Who makes the masks of a job: one engine here, workers on several devices, a cluster."""

    @property
    def opened(self) -> Opened:
        """The engine, or that of every worker."""

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """As work.write_masks."""


@dataclass(frozen=True)
class OneEngine:
    """The crew of an engine in this process."""

    engine: Engine
    look: Look | None

    @property
    def opened(self) -> Opened:
        return opened_from_engine(self.engine)

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        return write_masks(self.engine, tasks, options, self.look, stop)


class _Job:
    """Counts what the crew has done, and keeps the journal."""

    def __init__(
        self,
        crew: Crew,
        options: PredictOptions,
        journal: Journal | AddressJournal | None,
        summary: Summary,
    ) -> None:
        self.crew, self.options, self.journal, self.summary = crew, options, journal, summary

    def run(self, tasks: Sequence[Task], stop: threading.Event) -> None:
        left = tasks
        if self.journal is not None:
            whole = self.journal.output_dir / rle.NAME if self.options.format == "rle" else None
            left = self.journal.remaining(tasks, whole)
            ours = {path for task in left for path in task.files}
            remove_temporaries_of(ours if whole is None else ours | {whole})
        else:  # nothing keeps another job from these files
            remove_temporaries_of({path for task in left for path in task.files}, locked=False)
        wanted = {path.parent for task in left for path in task.files}
        folders = [folder for folder in wanted if _make_folder(folder)]
        summary = self.summary
        summary.planned, summary.skipped = len(tasks), len(tasks) - len(left)
        try:
            self._work(left, stop)
        finally:
            summary.left = len(left) - summary.done - summary.failed
            summary.skipped += summary.left
        self._require_in_place(folders)
        if self.options.format == "rle" and not summary.left:
            self._write_coco(tasks)

    def _work(self, left: Sequence[Task], stop: threading.Event) -> None:
        summary = self.summary
        what = f"predict ({summary.skipped} done before)" if summary.skipped else "predict"

        def must_stop() -> bool:
            return stop.is_set() or (self.options.strict and summary.failed > 0)

        with show_progress(what, len(left)) as advance:
            for outcome in self.crew.write_masks(left, self.options, must_stop):
                with self.options.pipeline.trace.span("journal"):
                    advance(1)
                    self._count(outcome)

    def _require_in_place(self, folders: list[Path]) -> None:
        """Masks whose folder has gone since are no masks: such a job is not done."""
        if self.journal is not None:
            self.journal.require_in_place()
        for folder in folders:
            if not folder.is_dir():
                raise OutputError(
                    f"cannot find {folder}, where masks were written",
                    seen="no such folder",
                    expected="an output folder that stays while the job runs",
                    hint="run the same command again: it makes what is not there",
                )

    def _count(self, outcome: Outcome) -> None:
        task = outcome.task
        if not outcome.reason:
            if self.journal is not None and outcome.stamp is not None:
                self.journal.record(task, outcome.stamp, outcome.mask)
            self.summary.done += 1
            return
        self.summary.fail(task.source, outcome.reason)
        if self.journal is not None:
            if self.journal.owns(task):
                _remove_stale(task)
            self.journal.record_failure(task, outcome.reason)

    def _write_coco(self, tasks: Sequence[Task]) -> None:
        journal = self.journal
        if journal is None:
            return
        path = journal.output_dir / rle.NAME
        with writing(path):
            rle.write_coco(path, lambda: journal.recorded_masks(tasks), self.crew.opened.spec)


def _remove_stale(task: Task) -> None:
    """A failed image has no mask: what an earlier run made of it is not its mask any more."""
    try:
        status_of(task.source)
    except OSError:  # it has gone, or nobody can say whether it is there
        return
    for path in task.files:
        with writing(path), store_errors():
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


def _make_folder(folder: Path) -> bool:
    """Whether there is a folder now."""
    if is_address(folder):  # folders of a store are but parts of names
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return True
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False  # the images whose masks would lie there fail, and no others
        raise UserError(
            f"cannot make the output folder {folder}",
            seen=error,
            expected="a folder that can be made and written to",
            hint="--output-dir DIR   with another DIR",
        ) from error
