"""What the masks of every row do to each class, as text."""

from __future__ import annotations

from collections.abc import Sequence

from .judge import ClassIou
from .result import Row
from .text import markdown_table

TO_PYTORCH = "IoU to PyTorch's masks, each class"
TO_TRUTH = "IoU to the truth, each class (change from the first row)"


def class_lines(rows: Sequence[Row]) -> list[str]:
    """IoU of each class to the baseline's masks and, where it is known, to the truth."""
    judged = [(row.name, row.judgement) for row in rows if row.judgement]
    near = [(name, [_iou(iou) for iou in found.iou.values()]) for name, found in judged]
    lines = _table(TO_PYTORCH, [list(found.iou) for _, found in judged], near)
    truths = [(name, found.truth_iou) for name, found in judged if found.truth_iou]
    if truths:
        true = [(name, _changes(found, truths[0][1])) for name, found in truths]
        lines += ["", *_table(TO_TRUTH, [list(found) for _, found in truths], true)]
    return lines


def _table(
    title: str, names: Sequence[Sequence[str]], cells: Sequence[tuple[str, Sequence[str]]]
) -> list[str]:
    if not cells:
        return []
    return [title, "", *markdown_table([("engine", *names[0]), *((n, *c) for n, c in cells)])]


def _changes(found: ClassIou, before: ClassIou) -> list[str]:
    return [_change(iou, before.get(name)) for name, iou in found.items()]


def _change(iou: float | None, before: float | None) -> str:
    if iou is None or before is None:
        return _iou(iou)
    return f"{iou:.4f} ({iou - before:+.4f})"


def _iou(iou: float | None) -> str:
    """A class that neither side has is no zero."""
    return "absent" if iou is None else f"{iou:.4f}"
