"""How many images a timed pass over files takes: as many as last about the seconds of a repeat."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from .file_passes import LEFT, clear_outputs, has_time, pauses_due, put_aside, seconds_of
from .job import RowJob
from .machine import wants_cuda

MOST_TASKS = 20_000
"""Masks of one pass at most: they lie on the disk together."""
LOOKS = 2
"""Untimed passes that tell how many rounds there must be: the first is mostly start and end."""
ENOUGH = 0.9
"""Share of the seconds that a pass must last: more rounds would not change its rate."""
FEWEST_IMAGES = 8
"""Of a pass of the reference loop, however long they take."""

STRICT = 3
"""On CUDA the masks of all images are made in strict fp32, slower than what was looked at."""

T = TypeVar("T")
_MARK = "-round-"


def spread_out(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them at even distances: the first by name are often of one kind."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def job_with_rounds(job: RowJob, rate: float, predict: Callable[[RowJob], None]) -> RowJob:
    """The job whose pass goes over all images as often as it must to last about job.seconds.

    rate: images a second of the engine alone; a pass that is long by that alone is not looked at.
    Further rounds write masks of their own, which `put_rounds_aside` takes away. A row without the
    time for such passes keeps its own.
    """
    count = len(job.images)
    most = MOST_TASKS // count
    needed = LOOKS + LEFT + 2 * pauses_due(job, 0)
    if most < 2 or count >= job.seconds * rate > 0 or not has_time(job, needed * job.seconds):
        return job
    rounds, longer = 1, job
    for _ in range(LOOKS):
        clear_outputs(longer)
        took = seconds_of(partial(predict, longer))
        if took >= ENOUGH * job.seconds:
            break
        rounds = min(most, math.ceil(rounds * job.seconds / took))
        longer = _with_rounds(job, rounds)
    return longer


def put_rounds_aside(folder: Path) -> None:
    """The masks of all rounds but the first, which alone are judged."""
    put_aside(list(folder.glob(f"*{_MARK}*")), folder)


def job_with_part(job: RowJob, predict: Callable[[RowJob], None]) -> RowJob:
    """The job with as many of its images, evenly spread, as last about job.seconds.

    Of images of one size alone: of several each counts. job.pass_images: as many as it says.
    Looks at some, untimed, to find out, and to be warm; the time that the masks of all need is kept
    for them.
    """
    if len(job.images) <= FEWEST_IMAGES:
        return job
    one = _seconds_an_image(job, predict)
    if job.pass_images is not None:
        return _part(job, job.pass_images)
    part = _part(job, max(FEWEST_IMAGES, math.ceil(job.seconds / one)))
    slower = STRICT if wants_cuda(job.device) else 1
    kept = 0.0 if job.files_only else slower * one * len(job.images)
    return replace(part, until=job.until - kept)


def _with_rounds(job: RowJob, rounds: int) -> RowJob:
    """Names of their own: the journal knows a task by its mask."""
    more = [_in_round(Path(path), n) for n in range(2, rounds + 1) for path in job.outputs]
    return replace(job, images=job.images * rounds, outputs=[*job.outputs, *more])


def _in_round(path: Path, number: int) -> str:
    return str(path.with_name(f"{path.stem}{_MARK}{number}{path.suffix}"))


def _part(job: RowJob, most: int) -> RowJob:
    pairs = spread_out(list(zip(job.images, job.outputs, strict=True)), most)
    return replace(job, images=[i for i, _ in pairs], outputs=[o for _, o in pairs])


def _seconds_an_image(job: RowJob, predict: Callable[[RowJob], None]) -> float:
    """Of FEWEST_IMAGES; of fewer where these outlast job.seconds: then no pass has more."""
    few, times = _part(job, FEWEST_IMAGES), []
    for image, output in zip(few.images, few.outputs, strict=True):
        single = replace(job, images=[image], outputs=[output])
        times.append(seconds_of(partial(predict, single)))
        if sum(times) >= job.seconds:
            break
    return statistics.median(times)
