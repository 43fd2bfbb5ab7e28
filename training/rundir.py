"""The folder of one run: best.pth, last.pth, metrics.csv and curve.png."""

from __future__ import annotations

import csv
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..contract.errors import UserError, as_word
from ..contract.files import BEST, atomic_path
from ..contract.locks import lock_file
from ..contract.log import log
from ..contract.metrics import Scores
from .curve import SHOWN_COLUMNS, Row, draw_curve

DEFAULT = Path("runs/train")
LAST, METRICS, CURVE = "last.pth", "metrics.csv", "curve.png"
LOCK = ".unetrt.lock"
"""There while a process writes the run, or after one that was killed; it is empty."""


class RunFolder:
    """Chosen before the data is read, made once the data is known to be good.

    From `create` or `lock` to `close` no other process can write a run into it.
    """

    def __init__(self, out: Path | None, *, resumed: bool = False) -> None:
        """Raise UserError when `out` holds another's files; without `out` take the next free name.

        resumed: the run that `out` holds is the one to go on with.
        """
        self.path = out or _free_folder()
        self._named, self._resumed = out is not None, resumed
        self._lock: IO[bytes] | None = None
        self._require_own()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_own(self) -> None:
        if self._resumed:
            return
        if self.last.exists() or self.best.exists():
            raise UserError(
                f"{self.path} holds the checkpoints of another run",
                expected="a new folder",
                hint=f"--out {self._other()}   or, to go on with that run, "
                f"--resume {as_word(self.path)}",
            )
        foreign = [path.name for path in (self.metrics, self.curve) if _is_filled(path)]
        if foreign:
            raise UserError(
                f"{self.path} holds files that a run would write over",
                seen=", ".join(foreign),
                expected="a new folder",
                hint=f"--out {self._other()}",
            )

    def _other(self) -> str:
        return as_word(self.path.with_name(f"{self.path.name}-2"))

    def create(self, epochs: int = 0) -> None:
        """Make the folder, and metrics.csv with the lines of the first `epochs` if it has them.

        A default name that another run has taken meanwhile becomes the next free one.
        Raises UserError where that is not possible, or another process writes there.
        """
        try:
            self._make()
            self.lock()
            self._require_own()  # another run may have come and gone while the data was read
            rows = self.read_metrics(keep=True) if epochs else []
            rows = [row for row in rows if int(row["epoch"]) <= epochs]
            self._write_metrics(rows, list(rows[0]) if rows else [])
        except OSError as error:
            raise UserError(f"cannot write to {self.path}", seen=error.strerror) from error

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self.path.mkdir(exist_ok=self._named)
                return
            except FileExistsError:
                if self._named:
                    raise
                self.path = _free_folder()

    def lock(self) -> None:
        """Raise UserError where another process writes the run. A folder that is not there: no."""
        if self._lock is None and self.path.is_dir():
            self._lock = _locked(self.path / LOCK)

    def close(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    @property
    def best(self) -> Path:
        return self.path / BEST

    @property
    def last(self) -> Path:
        return self.path / LAST

    @property
    def result(self) -> Path:
        """best.pth; last.pth where that is gone, as when last.pth alone was moved."""
        return self.best if self.best.exists() else self.last

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def curve(self) -> Path:
        return self.path / CURVE

    def append_metrics(self, row: dict[str, int | float | None]) -> None:
        """Add a line to metrics.csv; the first brings its header. None is an empty cell.

        A file of other columns, as an older version's, gets those of `row`, empty in its lines.
        Raises UserError where that is not possible: a full disk does not say of which file it is.
        """
        try:
            header = _header_of(self.metrics)
            columns = [*row, *(name for name in header if name not in row)]
            if header != columns:
                self._write_metrics(self.read_metrics(keep=True), columns)
            with self.metrics.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                writer.writerow(cells)
        except OSError as error:
            raise UserError(f"cannot write to {self.metrics}", seen=error.strerror) from error

    def read_metrics(self, keep: bool = False) -> list[Row]:
        """Lines that cannot be read, as after a power cut, are left out with a warning.

        keep: the file as it was is then kept beside it.
        """
        if not self.metrics.exists():
            return []
        found = _rows_from_csv(self.metrics)
        good = [row for row in found if _is_readable(row)]
        if len(good) < len(found):
            kept = self.metrics.with_suffix(".csv.damaged")
            if keep:
                shutil.copyfile(self.metrics, kept)
            told = f", and kept in {kept}" if keep else ""
            lost = len(found) - len(good)
            log.warning(f"{lost} lines of {self.metrics} cannot be read and are left out{told}")
        return good

    def draw(self) -> None:
        """Write curve.png from metrics.csv."""
        rows = self.read_metrics()
        if rows:
            draw_curve(rows, self.curve)

    def _write_metrics(self, rows: list[Row], columns: list[str]) -> None:
        with (
            atomic_path(self.metrics) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            if columns:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)


def score_columns(scores: Scores) -> dict[str, int | float | None]:
    means = {
        "foreground_miou": scores.foreground_miou,
        "foreground_dice": scores.foreground_dice,
        "pixel_accuracy": scores.pixel_accuracy,
    }
    ious = {f"iou {score.name}": score.iou for score in scores.classes}
    return {**means, **ious, **{f"dice {score.name}": score.dice for score in scores.classes}}


def _is_filled(path: Path) -> bool:
    """A run that ended before its first epoch leaves an empty metrics.csv."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _header_of(path: Path) -> list[str]:
    """[] of an empty file, and of one that cannot be read."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            return next(csv.reader(file), [])
        except csv.Error:
            return []


def _rows_from_csv(path: Path) -> list[Row]:
    """Each line by the header's names, whatever it holds; nothing of one that has no end."""
    found: list[Row] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            for row in csv.DictReader(file):
                found.append(row)  # noqa: PERF402  those before an error are kept
        except csv.Error:
            found.append({})
    return found


def _is_readable(row: Row) -> bool:
    """Whether all that the curve shows is there, each cell a number or empty."""
    if not row.keys() >= SHOWN_COLUMNS:
        return False
    try:
        int(row["epoch"])
        for cell in row.values():
            float(cell or "0" if isinstance(cell, str) else "none")
    except ValueError:
        return False
    return True


def _locked(path: Path) -> IO[bytes] | None:
    """Open and lock a file; None where there are no locks, or nothing can be written.

    Raises UserError where another process has it.
    """
    try:
        file = path.open("ab")
    except OSError:
        return None
    try:
        locked = lock_file(file)
    except BlockingIOError as error:
        file.close()
        raise _taken(path) from error
    # Who had it may have removed the file between our two calls.
    if locked and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file
    file.close()
    if locked:
        return _locked(path)
    path.unlink(missing_ok=True)
    return None


def _taken(path: Path) -> UserError:
    return UserError(
        f"another process writes the run in {path.parent}",
        seen=f"a lock on {path}",
        expected="one run at a time in a folder",
        hint="wait for it, or --out DIR   with another DIR",
    )


def _free_folder() -> Path:
    number, folder = 1, DEFAULT
    while folder.exists():
        number += 1
        folder = DEFAULT.with_name(f"{DEFAULT.name}-{number}")
    return folder
