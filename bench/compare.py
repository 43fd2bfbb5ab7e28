"""Two benches of the same rows: what changed beyond the noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .measure import spread
from .old_report import REGIONS as REGIONS
from .old_report import read_report as read_report
from .result import Bench
from .text import markdown_table, number

SHOWN = {
    "engine_only": "engine only",
    "with_copies": "engine with copies",
    "files_to_files": "files to files",
}
HEAD = ("row", "region", "before, images/s", "now, images/s", "change", "noise", "verdict")
WIDE = 0.25
"""Noise above which no regression of an ordinary size could be seen."""
VOLATILE = ("load before", "clocks", "clocks after", "throttled")
"""Of the machine: it differs each time, and says so in its own report."""
NOTHING = "nothing to compare: no row of that report has numbers that were trusted"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One region of a row, images a second of every repeat; now: () for a row that is lost.

    It had a trusted number before and has none now. baseline: of the reference loop, whose speed is
    PyTorch's own and changes from process to process: it is told, and is no regression.
    """

    row: str
    region: str
    before: tuple[float, ...]
    now: tuple[float, ...]
    baseline: bool = False

    @property
    def lost(self) -> bool:
        return not self.now

    @property
    def change(self) -> float:
        """Of the medians: now / before - 1."""
        return statistics.median(self.now) / statistics.median(self.before) - 1

    @property
    def noise(self) -> float | None:
        """Both half ranges together; None where one side has a single pass: it is not 0 then."""
        if min(len(self.before), len(self.now)) < 2:
            return None
        return spread(self.before) + spread(self.now)

    def is_regression(self, most: float) -> bool:
        """Slower by more than `most` (0.05: 5 %) and beyond the noise, or lost.

        The fastest repeat now below the slowest before is beyond any noise.
        """
        if self.lost or self.baseline:
            return self.lost
        if max(self.now) < (1 - most) * min(self.before):
            return True
        return self.noise is not None and self.change < -max(most, self.noise)

    def is_unknown(self, most: float) -> bool:
        """The repeats differ so much that a regression could hide among them."""
        if self.baseline or self.is_regression(most):
            return False
        if min(self.now) >= (1 - most) * max(self.before):
            return False
        return spread(self.before) + spread(self.now) > WIDE

    def verdict(self, most: float) -> str:
        if self.is_regression(most):
            return f"regression past {100 * most:g}%"
        if self.is_unknown(most):
            return "unknown: the repeats differ too much"
        direction = "faster" if self.change > 0 else "slower"
        if self.noise is None:
            return f"{direction if self.change else 'equal'}, by a single pass"
        return direction if abs(self.change) > self.noise else "within the noise"


def compare_reports(before: dict[str, Any], now: Bench) -> list[Change]:
    """Of every row that had trusted numbers before, by name."""
    rows = {row.name: row for row in now.rows}
    changes = []
    for old in before["rows"]:
        if not old["trusted"] or not old["result"]:
            continue
        row = rows.get(old["name"])
        result = row.result if row is not None and row.trusted else None
        changes += [
            Change(
                row=old["name"],
                region=SHOWN[region],
                before=tuple(old["result"][region]),
                now=tuple(getattr(result, region)) if result else (),
                baseline=old is before["rows"][0],
            )
            for region in _regions_of(old["result"])
        ]
    return changes


def _regions_of(result: dict[str, Any]) -> list[str]:
    """Those that were measured: on a CPU engine only and with copies are one number."""
    once = result["engine_only"] == result["with_copies"]
    return [r for r in REGIONS if result[r] and not (once and r == "with_copies")]


def compare_lines(before: dict[str, Any], now: Bench, most: float) -> tuple[list[str], bool]:
    """A table of the changes, and whether it is no pass: a regression, or nothing that is known."""
    changes = compare_reports(before, now)
    lines = markdown_table([HEAD, *(_cells(change, most) for change in changes)])
    lines = lines if changes else [NOTHING]
    unknown = [change for change in changes if change.is_unknown(most)]
    if unknown:
        lines.append(
            f"{len(unknown)} of {len(changes)} are unknown, which is no pass: measure again on a "
            "quiet machine, or with more --seconds and --repeats"
        )
    failed = not changes or bool(unknown) or any(c.is_regression(most) for c in changes)
    return [*lines, *(f"differs: {text}" for text in _differences(before, now))], failed


def _cells(change: Change, most: float) -> tuple[str, ...]:
    noise = change.noise
    return (
        change.row,
        change.region,
        number(statistics.median(change.before)),
        "lost" if change.lost else number(statistics.median(change.now)),
        "" if change.lost else f"{change.change:+.1%}",
        "" if change.lost else "unknown" if noise is None else f"±{noise:.1%}",
        change.verdict(most),
    )


def _differences(before: dict[str, Any], now: Bench) -> list[str]:
    """What makes two benches hard to compare: images, sizes, batches, machine, versions."""
    found: list[tuple[str, Any, Any]]
    found = [("images", before["images"], now.images), ("seconds", before["seconds"], now.seconds)]
    keys = dict.fromkeys([*before["machine"], *now.machine])
    machine = [(k, before["machine"].get(k), now.machine.get(k)) for k in keys]
    found += [line for line in machine if line[0] not in VOLATILE]
    versions = before["versions"]
    found += [(name, versions.get(name, ""), version) for name, version in now.versions.items()]
    lines = [
        f"{k}: {then or 'none'} before, {n or 'none'} now" for k, then, n in found if then != n
    ]
    return [*lines, *_row_differences(before["rows"], now)]


def _row_differences(before: Sequence[dict[str, Any]], now: Bench) -> list[str]:
    """Of the rows that both have; one line where the same has changed for several of them."""
    old = {row["name"]: row["result"] for row in before if row["result"]}
    names: dict[str, list[str]] = {}
    for row in now.rows:
        for text in _result_differences(old.get(row.name), row.result):
            names.setdefault(text, []).append(row.name)
    return [f"{text} ({', '.join(found)})" for text, found in names.items()]


def _result_differences(then: dict[str, Any] | None, result: Any) -> list[str]:
    if then is None or result is None:
        return []
    pairs = [
        ("network input", _size(then["input_size"]), _size(result.input_size)),
        ("batch", then["batch"], result.batch),
        ("precision", then["precision"], result.precision),
        ("device", then["device"], result.device),
    ]
    if result.pass_images and not then.get("pass_images"):
        pairs.append(("a pass over files", "all images once", "as long as --seconds"))
    return [f"{what}: {old} before, {new} now" for what, old, new in pairs if old != new]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}×{size[1]}"
