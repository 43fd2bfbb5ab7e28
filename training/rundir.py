"""The folder of one run: best.pth, last.pth, metrics.csv and curve.png."""

from __future__ import annotations

import csv
from pathlib import Path

from ..contract.errors import UserError
from ..contract.files import atomic_path
from ..contract.metrics import Scores
from .curve import Row, draw_curve

DEFAULT = Path("runs/train")
BEST, LAST, METRICS, CURVE = "best.pth", "last.pth", "metrics.csv", "curve.png"


class RunFolder:
    """Chosen before the data is read, made once the data is known to be good."""

    def __init__(self, out: Path | None, *, resumed: bool = False) -> None:
        """Raise UserError when `out` holds another's files; without `out` take the next free name.

        resumed: the run that `out` holds is the one to go on with.
        """
        self.path = out or _free_folder()
        if resumed:
            return
        if self.last.exists() or self.best.exists():
            raise UserError(
                f"{self.path} holds the checkpoints of another run",
                expected="a new folder",
                hint=f"--out {self.path}-2   or, to go on with that run, --resume {self.path}",
            )
        foreign = [path.name for path in (self.metrics, self.curve) if _is_filled(path)]
        if foreign:
            raise UserError(
                f"{self.path} holds files that a run would write over",
                seen=", ".join(foreign),
                expected="a new folder",
                hint=f"--out {self.path}-2",
            )

    def create(self, epochs: int = 0) -> None:
        """Make the folder, and metrics.csv with the lines of the first `epochs` if it has them.

        Raises UserError where that is not possible.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            rows = self.read_metrics() if epochs else []
            self._write_metrics([row for row in rows if int(row["epoch"]) <= epochs])
        except OSError as error:
            raise UserError(f"cannot write to {self.path}", seen=error.strerror) from error

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
        """Add a line to metrics.csv; the first brings its header. None is an empty cell."""
        new = self.metrics.stat().st_size == 0
        with self.metrics.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def read_metrics(self) -> list[Row]:
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="") as file:
            return list(csv.DictReader(file))

    def draw(self) -> None:
        """Write curve.png from metrics.csv."""
        rows = self.read_metrics()
        if rows:
            draw_curve(rows, self.curve)

    def _write_metrics(self, rows: list[Row]) -> None:
        with atomic_path(self.metrics) as temporary, temporary.open("w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


def score_columns(scores: Scores) -> dict[str, int | float | None]:
    means = {
        "foreground_miou": scores.foreground_miou,
        "foreground_dice": scores.foreground_dice,
        "pixel_accuracy": scores.pixel_accuracy,
    }
    return {**means, **{f"iou {score.name}": score.iou for score in scores.classes}}


def _is_filled(path: Path) -> bool:
    """A run that ended before its first epoch leaves an empty metrics.csv."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def _free_folder() -> Path:
    number, folder = 1, DEFAULT
    while folder.exists():
        number += 1
        folder = DEFAULT.with_name(f"{DEFAULT.name}-{number}")
    return folder
