"""Two benches of the same rows: what changed beyond the noise."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import require_file
from .measure import spread
from .result import Bench
from .text import markdown_table, number

REGIONS = ("with_copies", "files_to_files")
SHOWN = {"with_copies": "engine", "files_to_files": "files to files"}
HEAD = ("row", "region", "before, images/s", "now, images/s", "change", "noise", "verdict")


@dataclass(frozen=True, kw_only=True)
class Change:
    """now / before - 1 of one region of a row, and the noise: both half ranges together.

    lost: the row had a trusted number before and has none now.
    """

    row: str
    region: str
    before: float
    now: float
    noise: float
    lost: bool = False

    @property
    def change(self) -> float:
        return self.now / self.before - 1

    @property
    def beyond_noise(self) -> bool:
        return self.lost or abs(self.change) > self.noise

    def is_regression(self, most: float) -> bool:
        """Slower by more than `most` (0.05: 5 %) and beyond the noise, or lost."""
        return self.lost or (self.beyond_noise and self.change < -most)


def read_report(path: Path) -> dict[str, Any]:
    """A JSON report of `bench --report`. Raises UserError when it is none."""
    require_file(path, "bench report", "unetrt bench … --report DIR   writes one")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON", seen=error) from error
    keys = {"rows", "machine", "images"}
    if not isinstance(raw, dict) or not keys <= raw.keys():
        raise UserError(f"{path} is not a report of the bench", expected=", ".join(sorted(keys)))
    return raw


def compare_reports(before: dict[str, Any], now: Bench) -> list[Change]:
    """Of every row that had trusted numbers before, by name. Raises UserError for an old form."""
    rows = {row.name: row for row in now.rows}
    changes = []
    for old in before["rows"]:
        if not old["trusted"] or not old["result"]:
            continue
        row = rows.get(old["name"])
        for region in REGIONS:
            if region not in old["result"]:
                raise UserError(
                    "the report to compare with is of an older bench",
                    seen=f"no {region} in its rows",
                    hint="unetrt bench … --report DIR   writes one of this version",
                )
            then = old["result"][region]
            result = row.result if row is not None and row.trusted else None
            rates = getattr(result, region) if result else []
            changes.append(_change(old["name"], region, then, rates))
    return changes


def _change(row: str, region: str, then: Sequence[float], rates: Sequence[float]) -> Change:
    return Change(
        row=row,
        region=SHOWN[region],
        before=statistics.median(then),
        now=statistics.median(rates) if rates else 0.0,
        noise=spread(then) + (spread(rates) if rates else 0.0),
        lost=not rates,
    )


def compare_lines(before: dict[str, Any], now: Bench, most: float) -> tuple[list[str], bool]:
    """A table of the changes, and whether one is a regression past `most`."""
    changes = compare_reports(before, now)
    cells = [
        (
            change.row,
            change.region,
            number(change.before),
            "lost" if change.lost else number(change.now),
            "" if change.lost else f"{change.change:+.1%}",
            f"±{change.noise:.1%}",
            _verdict(change, most),
        )
        for change in changes
    ]
    lines = markdown_table([HEAD, *cells]) if cells else ["nothing to compare"]
    differences = [f"differs: {text}" for text in _differences(before, now)]
    return [*lines, *differences], any(change.is_regression(most) for change in changes)


def _verdict(change: Change, most: float) -> str:
    if change.is_regression(most):
        return f"regression past {most:.0%}"
    if not change.beyond_noise:
        return "within the noise"
    return "faster" if change.change > 0 else "slower"


def _differences(before: dict[str, Any], now: Bench) -> list[str]:
    """What makes two benches hard to compare: images, processor, cores, versions."""
    found = []
    if before["images"] != now.images:
        found.append(f"images: {before['images']} before, {now.images} now")
    for key in ("processor", "cores used", "gpu"):
        then = before["machine"].get(key)
        if then != now.machine.get(key):
            found.append(f"{key}: {then} before, {now.machine.get(key)} now")
    versions = before.get("versions", {})
    for name, version in now.versions.items():
        if versions.get(name, "") != version:
            found.append(f"{name}: {versions.get(name) or 'none'} before, {version or 'none'} now")
    return found
