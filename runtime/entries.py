"""What the lines of a journal say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.errors import UserError, as_word
from ..contract.files import OVERLAY_SUFFIX
from .lines import damaged, read_lines

JOURNAL_FOLDER = ".unetrt"
"""Below the output folder of a job."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "input": str,
    "output": (str, type(None)),
    "status": str,
}
_OTHERS = ("planned", "former", "overlays")
"""Lines that are about no image hold one of these."""

_STAMP_KINDS: dict[str, type | tuple[type, ...]] = {"size": int, "mtime_ns": int}


def journals_below(output_dir: Path) -> list[Path]:
    """Those of a job or of its shards, sorted. Raises UserError where they may not be listed."""
    folder = output_dir / JOURNAL_FOLDER
    try:
        names = os.listdir(folder)  # noqa: PTH208  a Path's glob finds nothing where it may not
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"cannot list {folder}, where journals are",
            seen=error.strerror,
            expected="a folder that may be listed",
            hint=f"chmod u+rx {as_word(folder)}",
        ) from error
    found = [name for name in names if name.startswith("journal") and name.endswith(".jsonl")]
    return [folder / name for name in sorted(found)]


def first_of(path: Path) -> dict[str, Any] | None:
    """What must match."""
    return next((entry for _, entry in read_lines(path)), None)


def former_in(path: Path) -> dict[str, str]:
    """Mask → image of what was there before a restart; these lines follow the first one."""
    found: dict[str, str] = {}
    for start, entry in read_lines(path):
        if start and "former" not in entry:
            break
        found |= entry.get("former", {})
    return found


def owners_in(path: Path) -> dict[str, str]:
    """Mask → image."""
    found: dict[str, str] = {}
    with suppress(UserError, OSError):
        found = former_in(path)
        for entry in image_entries(path):
            if entry["status"] == "done" and entry["output"] is not None:
                found[entry["output"]] = entry["input"]
    return found


def overlays_in(path: Path) -> set[str]:
    """The folders that overlays were written to."""
    found: set[str] = set()
    with suppress(UserError, OSError):
        found = {entry["overlays"] for _, entry in read_lines(path) if "overlays" in entry}
    return found


@dataclass
class Plans:
    """What a journal's plans name: images, all of them together; last, the last one.

    whole: there is one, and the last has its end. overlays: the folders that they were written to.
    mark: of the list that the last one is a shard's part of; "" by an older version.
    """

    images: dict[str, None] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)
    whole: bool = False
    overlays: set[str] = field(default_factory=set)
    mark: str = ""

    def add(self, part: Any, start: object, of: object, mark: object = "") -> bool:
        """False for what is no part of a plan."""
        self.last = [] if start == 0 else self.last
        if not isinstance(part, list) or len(self.last) != start:
            return False
        self.last += part
        self.images |= dict.fromkeys(part)
        self.whole, self.mark = len(self.last) == of, str(mark)
        return True


def image_entries(path: Path, plans: Plans | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a journal that are about an image, their fields checked. UserError: damaged.

    plans: takes what the lines between them say.
    """
    for number, (start, entry) in enumerate(read_lines(path), 1):
        if "planned" in entry and plans is not None:
            parts = (entry.get("from"), entry.get("of"), entry.get("list", ""))
            told = plans.add(entry["planned"], *parts)
            if not told:
                raise damaged(path, number, "a plan without its beginning")
        if "overlays" in entry and plans is not None:
            plans.overlays.add(entry["overlays"])
        if start == 0 or any(name in entry for name in _OTHERS):
            continue
        kinds = _KINDS | (_STAMP_KINDS if entry.get("status") == "done" else {})
        for name, kind in kinds.items():
            if not isinstance(entry.get(name, ...), kind):
                raise damaged(path, number, f"no {name}")
        yield entry


def written_below(root: str, places: Iterable[str]) -> set[str]:
    """What jobs have written, by their journals in the folders of `places` and in those above."""
    folders = {os.path.dirname(place) for place in places}  # noqa: PTH120  text, as `located` gives
    written: set[str] = set()
    for above in {above for folder in folders for above in _up_to(folder, root)}:
        if os.path.isdir(os.path.join(above, JOURNAL_FOLDER)):  # noqa: PTH112, PTH118  text
            written |= _written_by_job(above)
    return written


def _up_to(folder: str, root: str) -> Iterator[str]:
    """The folder and those above it, below `root`."""
    while len(folder) > len(root) and folder.startswith(root):
        yield folder
        folder = os.path.dirname(folder)  # noqa: PTH120


def _written_by_job(folder: str) -> set[str]:
    """Masks and overlays, as the journals of an output folder name them."""
    found: set[str] = set()
    for journal in journals_below(Path(folder)):
        masks = owners_in(journal)
        found |= {f"{folder}{os.sep}{mask}" for mask in masks}
        stems = [os.path.splitext(mask)[0] for mask in masks]  # noqa: PTH122
        for overlays in overlays_in(journal):
            found |= {f"{overlays}{os.sep}{stem}{OVERLAY_SUFFIX}" for stem in stems}
    return found
