"""What this machine can decode, resize, encode and write: files to files, with no network between.

No engine makes masks faster from such images in one process, whatever its GPU.

python -m unetrt.bench.feed IMAGES [--scale 0.5]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..contract.cores import usable_cores
from ..contract.errors import UserError
from ..contract.files import image_paths
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from ..engine.host import HostEngine
from ..runtime.encode import resolve_format
from ..runtime.pipeline import PipelineOptions
from ..runtime.plan import Task
from ..runtime.work import PredictOptions, write_masks
from ..training.synthetic import CLASS_NAMES, draw_pair
from .text import markdown_table, number, print_lines

HEAD = ("load threads", "images/s", "cores busy", "CPU of an image, ms")


class NoNetwork(HostEngine):
    """Gives every image the mask of a drawn picture of its size."""

    backend, precision, device = "none", "none", "cpu"

    def infer(self, images: U8, masks: U8) -> None:
        masks[:] = drawn_mask((masks.shape[-2], masks.shape[-1]))


@cache
def drawn_mask(size: Size) -> U8:
    return draw_pair(0, size)[1]


@dataclass(frozen=True, kw_only=True)
class Feed:
    """rate: images a second. cpu: seconds that all threads computed for one."""

    threads: int
    rate: float
    cpu: float


def measure_feed(
    images: Sequence[Path], spec: ModelSpec, batch: int, threads: int, seconds: float
) -> Feed:
    """Images over and over for `seconds`, after a round that is not timed.

    Raises UserError where masks cannot be written, or none of the images can be read.
    """
    pipeline = PipelineOptions(batch=batch, slots=3, load_threads=threads)
    options = PredictOptions(format=resolve_format("auto", spec), pipeline=pipeline)
    with tempfile.TemporaryDirectory(prefix="unetrt-feed-") as name, NoNetwork(spec) as engine:
        numbers = itertools.count()

        def tasks(until: float) -> Iterator[Task]:
            for image in itertools.cycle(images):
                if time.perf_counter() > until:
                    return
                yield Task(image, Path(name, f"{next(numbers)}.png"))

        warm = list(write_masks(engine, itertools.islice(tasks(np.inf), len(images)), options))
        if all(outcome.reason for outcome in warm):
            raise UserError("none of the images can be read", seen=warm[0].reason)
        start, cpu = time.perf_counter(), time.process_time()
        outcomes = write_masks(engine, tasks(start + seconds), options)
        done = sum(not outcome.reason for outcome in outcomes)
        spent = time.perf_counter() - start
        return Feed(
            threads=threads, rate=done / spent, cpu=(time.process_time() - cpu) / max(1, done)
        )


def feed_lines(feeds: Sequence[Feed]) -> list[str]:
    """A Markdown table."""
    cells = [
        (str(f.threads), number(f.rate), number(f.rate * f.cpu), number(1000 * f.cpu))
        for f in feeds
    ]
    return markdown_table([HEAD, *cells])


def main() -> int:
    """Print the table; exit status 2 where it could not be measured."""
    cores = usable_cores()
    parser = argparse.ArgumentParser(prog="python -m unetrt.bench.feed")
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--load-threads",
        type=int,
        nargs="+",
        default=sorted({1, 2, max(1, cores // 4), max(1, cores // 2), cores}),
        metavar="N",
        help="a row each (a thread a core is what predict takes)",
    )
    args = parser.parse_args()
    if min(args.batch, args.seconds, *args.load_threads) <= 0:
        parser.error("--batch, --seconds and --load-threads are above 0")

    def measure() -> list[str]:
        spec = ModelSpec(channels=args.channels, classes=len(CLASS_NAMES), scale=args.scale)
        images = image_paths(args.images)
        threads = args.load_threads
        return feed_lines(
            [measure_feed(images, spec, args.batch, n, args.seconds) for n in threads]
        )

    return print_lines(parser.prog, measure)


if __name__ == "__main__":
    sys.exit(main())
