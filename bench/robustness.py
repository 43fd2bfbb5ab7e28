"""Whether a job gives the same masks again: over a mixed tree twice, and killed and gone on with.

python -m unetrt.bench.robustness MODEL --images DIR --kills 50
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import UserError, first_line
from ..contract.files import image_paths
from ..runtime.journal import FOLDER, NAME
from .mixed_tree import BAD, write_mixed_tree
from .text import markdown_table, print_lines

KILLS_A_JOB = 8
"""About, until it is done; then another job begins."""

LATER = 0.02
"""Seconds after a line of the journal, at most, when a job is killed: a mask is being written."""

ENDED = (0, 1)
"""Exit status of a job that is done; 1: some images failed, as they should."""

TICK = 0.0005
HANGS = 600.0


@dataclass(frozen=True)
class Finished:
    """A job that came to its end: what its last run says, and how often it was killed before.

    differences: files that differ from those of the first job, are missing or too many; images
    that the journal has as done more than once.
    """

    name: str
    counts: dict[str, int]
    seconds: float
    kills: int
    differences: list[str]


class Jobs:
    """`unetrt predict` of one model over one tree, each job into a folder of its own."""

    def __init__(self, model: str, images: Path, root: Path, seed: int) -> None:
        self._model, self._images, self._root = model, images, root
        self._rng = random.Random(seed)
        self._first: Path | None = None

    def finish(self, name: str, kills: int = 0, lines: int = 0) -> Finished:
        """Kill it up to `kills` times, each after up to `lines` lines of its journal, and go on."""
        out, start, killed = self._root / name, time.perf_counter(), 0
        while killed < kills and self._kill(out, self._rng.randrange(lines)):
            killed += 1
        answer = self._root / f"{name}.json"
        command = [*self._command(out), "--json", str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode not in ENDED:
            raise UserError("a job failed", seen=first_line(done.stderr), expected="status 0 or 1")
        counts = {k: v for k, v in json.loads(answer.read_text()).items() if isinstance(v, int)}
        self._first = self._first or out
        told = differences(self._first, out) + done_twice(out / FOLDER / NAME)
        return Finished(name, counts, seconds, killed, told)

    def _kill(self, out: Path, lines: int) -> bool:
        """False where the job ended before; it is started again all the same, with nothing left."""
        journal = out / FOLDER / NAME
        goal, end = _lines_of(journal) + lines, time.monotonic() + HANGS
        job = subprocess.Popen(
            self._command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while job.poll() is None and _lines_of(journal) < goal:
                if time.monotonic() > end:
                    raise UserError("a job hangs", seen=f"no end after {HANGS:.0f} s")
                time.sleep(TICK)
            time.sleep(self._rng.random() * LATER)
        finally:
            job.kill()
            job.wait()
        if job.returncode not in (*ENDED, -signal.SIGKILL):
            raise UserError("a job failed", seen=f"status {job.returncode}", expected="0 or 1")
        return job.returncode == -signal.SIGKILL

    def _command(self, out: Path) -> list[str]:
        paths = ["-m", self._model, "-i", str(self._images), "--output-dir", str(out)]
        return [sys.executable, "-m", "unetrt.cli", "predict", *paths]


def _lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def differences(first: Path, second: Path) -> list[str]:
    """Names of files that are not in both folders with the same bytes; the journals' left out."""
    ours, theirs = ({p.relative_to(f): p for p in _files(f)} for f in (first, second))
    same = {n for n in ours.keys() & theirs if ours[n].read_bytes() == theirs[n].read_bytes()}
    return sorted(str(name) for name in (ours.keys() | theirs.keys()) - same)


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and FOLDER not in p.parts]


def done_twice(journal: Path) -> list[str]:
    """Images whose mask was made by more than one run, by the journal."""
    entries = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    done = Counter(entry["input"] for entry in entries if entry.get("status") == "done")
    return [f"{name} done {times} times" for name, times in done.items() if times > 1]


def measure_robustness(
    model: str, sources: Sequence[Path], count: int, kills: int, root: Path, seed: int = 1
) -> tuple[Counter[str], list[Finished]]:
    """What the tree holds; then two undisturbed jobs and as many as `kills` takes.

    Raises UserError where a job fails or hangs.
    """
    kinds = write_mixed_tree(sources, count, root / "images")
    jobs = Jobs(model, root / "images", root, seed)
    found = [jobs.finish("first"), jobs.finish("second")]
    while (left := kills - sum(job.kills for job in found)) > 0:
        number = len(found) - 1
        found.append(jobs.finish(f"killed {number}", left, max(2, 2 * count // KILLS_A_JOB)))
    return kinds, found


def robustness_lines(kinds: Counter[str], jobs: Sequence[Finished]) -> list[str]:
    """Markdown: the tree in a line, and a table with a line a job."""
    tree = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    head = ["job", "killed", "planned", "done", "failed", "skipped", "seconds", "images/s", "equal"]
    bad = sum(kinds[kind] for kind in BAD)
    kills = sum(job.kills for job in jobs)
    wrong = [f"{job.name}: {name}" for job in jobs for name in job.differences]
    wrong += [f"{j.name}: {j.counts['failed']} failed" for j in jobs if j.counts["failed"] != bad]
    lines = [f"{kinds.total():,} files: {tree}.", "", *markdown_table([head, *map(_cells, jobs)])]
    told = "every mask was made once, with the same bytes; what failed are the bad files"
    return [*lines, "", f"{kills} kills: {'; '.join(wrong[:20]) or told}."]


def _cells(job: Finished) -> list[str]:
    counts = [str(job.counts[name]) for name in ("planned", "done", "failed", "skipped")]
    rate = "" if job.kills else f"{job.counts['done'] / job.seconds:.0f}"
    equal = "no" if job.differences else "yes"
    return [job.name, str(job.kills), *counts, f"{job.seconds:.1f}", rate, equal]


def main() -> int:
    """Print the table; exit status 2 where a job failed."""
    parser = argparse.ArgumentParser(prog="python -m unetrt.bench.robustness")
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1000, help="files of the tree")
    parser.add_argument("--kills", type=int, default=0, help="kill -9, in all")
    args = parser.parse_args()

    def measure() -> list[str]:
        with tempfile.TemporaryDirectory(prefix="unetrt-robustness-") as name:
            # One of each folder by turns, so that a small tree has all of them.
            folders = [image_paths(folder) for folder in args.images]
            most = max(map(len, folders))
            sources = [f[i % len(f)] for i in range(most) for f in folders]
            found = measure_robustness(args.model, sources, args.count, args.kills, Path(name))
            return robustness_lines(*found)

    return print_lines(parser.prog, measure)


if __name__ == "__main__":
    sys.exit(main())
