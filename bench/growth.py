"""Whether a long job's memory grows: `unetrt predict` over many images, its size by images done.

python -m unetrt.bench.growth MODEL --images DIR --count 100000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import UserError
from ..contract.files import image_paths
from ..runtime.journal import FOLDER, NAME
from .text import print_lines

STEPS = (1, 2, 5)
"""The marks are these times 1, 10, 100, …: what is flat shows on them."""

FIRST = 1000
"""Images after which a job has come to its size."""

TICK = 0.1
_OF_AN_IMAGE = b'"status"'


@dataclass(frozen=True)
class Mark:
    """resident: bytes of the process in memory, files that it has mapped counted in."""

    images: int
    resident: int
    seconds: float


def measure_growth(model: str, sources: Sequence[Path], count: int, root: Path) -> list[Mark]:
    """Predict `count` links to the sources, below `root`; marks as they are passed, the end last.

    Raises UserError where the job fails, and where the system does not tell a process's size.
    """
    if not Path("/proc/self/statm").exists():
        raise UserError("a process's size is read from /proc", seen="no such files on this system")
    images, masks = _linked(sources, count, root / "images"), root / "masks"
    arguments = ["predict", "-m", model, "-i", str(images), "--output-dir", str(masks)]
    job = subprocess.Popen(
        [sys.executable, "-m", "unetrt.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        marks = _watch(job, masks / FOLDER / NAME, count)
    finally:
        job.kill()
        job.wait()
    if job.returncode != 0 or not marks or marks[-1].images != count:
        seen = f"exit status {job.returncode}, {marks[-1].images if marks else 0} images done"
        raise UserError("the job did not come to its end", seen=seen, expected=f"{count} images")
    return marks


def _linked(sources: Sequence[Path], count: int, folder: Path) -> Path:
    """Folders of 1,000 links each."""
    for index in range(count):
        source = sources[index % len(sources)]
        place = folder / f"{index // 1000:05}"
        if index % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"{index:07}{source.suffix}").symlink_to(source.resolve())
    return folder


def _watch(job: subprocess.Popen[bytes], journal: Path, count: int) -> list[Mark]:
    marks, done, start = [], 0, time.perf_counter()
    wanted = [step * 10**power for power in range(8) for step in STEPS]
    wanted = [mark for mark in wanted if mark < count] + [count]
    offset, resident = 0, 0
    while True:
        ended = job.poll() is not None
        resident = resident if ended else _resident(job.pid) or resident
        if journal.exists():
            with journal.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if line.endswith(b"\n"):  # else it is being written
                        done, offset = done + (_OF_AN_IMAGE in line), offset + len(line)
        while wanted and done >= wanted[0]:
            passed = wanted.pop(0)
            if not wanted or done < wanted[0]:
                marks.append(Mark(passed, resident, time.perf_counter() - start))
        if ended:
            return marks
        time.sleep(TICK)


def _resident(pid: int) -> int:
    """0 where the process has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def growth_lines(marks: Sequence[Mark]) -> list[str]:
    """A Markdown table, and from FIRST on the growth to the largest size after it."""
    lines = ["| images done | seconds | memory, MB |", "| --- | --- | --- |"]
    lines += [f"| {m.images:,} | {m.seconds:.1f} | {m.resident / 1e6:.1f} |" for m in marks]
    later = [mark for mark in marks if mark.images >= FIRST]
    if len(later) > 1:
        grown = max(mark.resident for mark in later[1:]) - later[0].resident
        told = f"growth after the first {later[0].images:,} images, at most: {grown / 1e6:+.1f} MB"
        lines += ["", told]
    return lines


def main() -> int:
    """Print the table; exit status 2 where it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m unetrt.bench.growth")
    parser.add_argument("model", help="a small one: it is the number of images that counts")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=100_000)
    args = parser.parse_args()

    def measure() -> list[str]:
        with tempfile.TemporaryDirectory(prefix="unetrt-growth-") as name:
            images = image_paths(args.images)
            return growth_lines(measure_growth(args.model, images, args.count, Path(name)))

    return print_lines(parser.prog, measure)


if __name__ == "__main__":
    sys.exit(main())
