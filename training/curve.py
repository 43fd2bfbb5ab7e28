"""metrics.csv as a picture: loss, scores and learning rate by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contract.files import atomic_path

Row = dict[str, str]
"""A line of metrics.csv by column; an empty cell is a class that was absent."""

SHOWN_COLUMNS = frozenset({"epoch", "loss", "foreground_miou", "learning_rate"})
"""What every line has to have; the classes' columns are those that there are."""


def draw_curve(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, scores, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1))
    epochs = [int(row["epoch"]) for row in rows]
    loss.plot(epochs, _column(rows, "loss"), ".-", color="black")
    loss.set_ylabel("training loss")
    mean = _column(rows, "foreground_miou")  # the background's IoU is drawn too, and not in it
    scores.plot(epochs, mean, ".-", color="black", label="foreground mIoU")
    for name in [name for name in rows[0] if name.startswith("iou ")]:
        scores.plot(epochs, _column(rows, name), label=name.removeprefix("iou "), alpha=0.7)
    scores.set(ylabel="IoU on validation", ylim=(0, 1))
    scores.legend(loc="lower right", fontsize="small")
    rate.plot(epochs, _column(rows, "learning_rate"), color="black")
    rate.set(ylabel="learning rate", xlabel="epoch")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) if row[name] else float("nan") for row in rows]
