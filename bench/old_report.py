"""A JSON report of an earlier bench, checked before anything is measured against it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import require_file
from .job import result_from_dict

REGIONS = ("engine_only", "with_copies", "files_to_files")
MAY_BE_EMPTY = ("engine_only",)
"""PyTorch without pycuda has no streams of its own to measure the network on."""
KINDS: dict[str, type | tuple[type, ...]] = {
    "command": str,
    "rows": list,
    "machine": dict,
    "versions": dict,
    "images": int,
    "seconds": (int, float),
}
ROW_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "trusted": bool,
    "result": (dict, type(None)),
    "agreement": (int, float, type(None)),
    "reason": str,
}
MOST_SEEN = 60
"""Characters of a value that are shown."""


def read_report(path: Path) -> dict[str, Any]:
    """A JSON report of `bench --report`. Raises UserError when it is none, or of an older form."""
    require_file(path, "bench report", "unetrt bench … --report DIR   writes one")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON", seen=error) from error
    if not isinstance(raw, dict) or not KINDS.keys() & raw.keys():
        expected = ", ".join(KINDS)
        raise UserError(f"{path} is not a report of the bench", expected=expected)
    _require(path, "it", raw, KINDS)
    for place, row in enumerate(raw["rows"], start=1):
        _check_row(path, f"row {place}", row)
    return raw


def _check_row(path: Path, where: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise _malformed(path, where, row)
    _require(path, where, row, ROW_KINDS)
    result = row["result"]
    if not result:
        return
    for region in REGIONS:
        rates = result.get(region)
        missing = not rates and region not in MAY_BE_EMPTY
        if not isinstance(rates, list) or missing or not all(map(_is_rate, rates)):
            raise _malformed(path, f"{region} of {where}", rates)
    try:
        result_from_dict(result)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _malformed(path, f"result of {where}", error) from error


def _require(
    path: Path, where: str, raw: dict[str, Any], kinds: dict[str, type | tuple[type, ...]]
) -> None:
    for key, kind in kinds.items():
        if key not in raw or not isinstance(raw[key], kind):
            raise _malformed(path, f"{key} of {where}", raw.get(key, "nothing"))


def _is_rate(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 < value < math.inf


def _malformed(path: Path, what: str, seen: object) -> UserError:
    return UserError(
        f"{path} is of another bench than this one: it cannot be compared with",
        seen=f"{what}: {str(seen)[:MOST_SEEN]}",
        expected="a report of this version",
        hint="unetrt bench … --report DIR   writes one of this version",
    )
