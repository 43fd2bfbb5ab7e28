"""Files to files: passes over the images, and how busy others kept the cores meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.journal import FOLDER, NAME
from .job import RowJob
from .machine import OthersClock

FEWEST = 2
"""Passes of every row: the spread of a single one is not known."""
ASIDE = "-aside-"
MOST_ASIDE = 50_000
"""Files that are put aside before the next row begins: all go with the bench's folder."""
LEFT = 3
"""Passes that must fit into a row's time for one more to begin: that one, the stages', a margin."""
AFTER = 2
"""Measurements of the engine, about, that latency and layers take as long as, after all passes."""


@dataclass(frozen=True)
class FilePasses:
    """Images a second of every pass; others: share of the cores that they kept busy, if known.

    images: of a pass, each as often as it was gone over.
    """

    rates: list[float]
    others: float | None = None
    images: int = 0


def _nothing() -> None:
    pass


def time_passes(
    predict: Callable[[], None], job: RowJob, between: Callable[[], None] = _nothing
) -> FilePasses:
    """FEWEST passes, unless the row's time forbids; more while `repeats` and the time allow.

    job: its images and outputs are those of one pass, see pass_length.

    Each writes into a folder without masks, as a first run does; to empty it is not timed.
    between: called before the first pass and after each, untimed; what it takes must fit, too.
    """
    rates: list[float] = []
    spent, elapsed = 0.0, 0.0
    clock = OthersClock()
    paused = seconds_of(between)
    while not rates or (
        _wants_more(job, len(rates), spent)
        and has_time(job, LEFT * elapsed + pauses_due(job, len(rates)) * paused)
    ):
        clear_outputs(job)
        with clock.watching():
            elapsed = seconds_of(predict)
        spent += elapsed
        rates.append(len(job.images) / elapsed)
        paused = seconds_of(between)
    return FilePasses(rates, clock.share(), len(job.images))


def seconds_of(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def has_time(job: RowJob, seconds: float) -> bool:
    """Whether so much more fits before the row is given up."""
    return time.time() + seconds < job.until


def output_folder(job: RowJob) -> Path:
    """Where the masks of a row lie, all of them, and its journal."""
    return Path(job.outputs[0]).parent


def clear_outputs(job: RowJob) -> None:
    """Put masks and journal of the pass before aside: the journal would skip every image."""
    put_aside([*map(Path, job.outputs), output_folder(job) / FOLDER / NAME], output_folder(job))


def put_aside(files: Sequence[Path], folder: Path) -> None:
    """Move those that are there into a new folder beside `folder`.

    To remove them would slow the next pass: ext4 without a journal shuns the inodes that were freed
    in the last minutes, and took 0.7 ms to find another one, where a first run takes 0.04.
    """
    found = [path for path in files if path.exists()]
    if found:
        aside = tempfile.mkdtemp(prefix=f"{folder.name}{ASIDE}", dir=folder.parent)
        for path in found:
            path.rename(Path(aside, path.name))


def remove_aside(folder: Path) -> None:
    """What `put_aside` has left in `folder`, where it is more than the disk should bear."""
    found = list(folder.glob(f"*{ASIDE}*"))
    if sum(len(os.listdir(path)) for path in found) > MOST_ASIDE:  # noqa: PTH208  counted, no paths
        for path in found:
            shutil.rmtree(path)


def _wants_more(job: RowJob, passes: int, spent: float) -> bool:
    fewest = 1 if job.files_only else FEWEST
    return passes < fewest or (passes < job.repeats and spent < job.seconds * job.repeats)


def pauses_due(job: RowJob, passes: int) -> int:
    """If another pass begins: up to `repeats` in all, that of the stages' pass, and AFTER."""
    made = passes + 1
    return max(job.repeats - made, 1) + 1 + AFTER
