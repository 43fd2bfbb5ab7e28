"""Numbers, names and Markdown tables as every part of the bench writes them."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence

from ..contract.errors import UserError
from .measure import spread

SHOWN = 5
"""Wrong files that a message names."""


def print_lines(program: str, measure: Callable[[], Sequence[str]]) -> int:
    """Print what `measure` gives; where it raises UserError say that, and return its status."""
    try:
        lines = measure()
    except UserError as error:
        sys.stderr.write(f"{program}: error: {error}\n")
        return error.status
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def markdown_table(cells: Sequence[Sequence[str]]) -> list[str]:
    """The first line is the head; columns as wide as their widest cell."""
    cells = [[" ".join(cell.replace("|", "¦").split()) for cell in line] for line in cells]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [_line(line, widths) for line in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f" {cell:{width}} " for cell, width in zip(cells, widths, strict=True)]
    return "|" + "|".join(padded) + "|"


def free_name(name: str, is_taken: Callable[[str], bool], form: str = "{}-{}") -> str:
    """`name`, or its first form with a number, from 2 on, that is not taken."""
    names = itertools.chain([name], (form.format(name, n) for n in itertools.count(2)))
    return next(found for found in names if not is_taken(found))


def rates_text(rates: Sequence[float]) -> str:
    middle = number(statistics.median(rates))
    return f"{middle} ± {spread(rates):.0%}" if len(rates) > 1 else middle


def listed(texts: Sequence[str]) -> str:
    """The first SHOWN of them in one line, and how many more there are."""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


def number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
