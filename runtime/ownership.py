"""Whose the files are that lie where a job writes: its own, another image's or nobody's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..contract.addresses import is_address
from ..contract.errors import UserError
from .address_plan import list_files, plans_below, read_plan
from .entries import journals_below, owners_in
from .plan import Task

RESTART = "--restart   makes every mask again; --output-dir with another folder keeps these"
SHOWN = 3


def another_owner(mask: Path, owner: str, image: str) -> UserError:
    return UserError(
        f"{mask} is the mask of another image", seen=owner, expected=image, hint=RESTART
    )


def refuse_foreign(files: Sequence[Path]) -> None:
    """Raise UserError where there are files that a first run would replace."""
    if files:
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        raise UserError(
            "masks would replace files that no job of unetrt has written",
            seen=", ".join(map(str, files[:SHOWN])) + more,
            expected="no file where a mask or an overlay is to be",
            hint="--output-dir DIR   with another DIR; or --restart, which replaces them",
        )


def is_here(path: Path) -> bool:
    """False at an address, whose store is not asked for each file."""
    return not is_address(path) and os.path.isfile(path)  # noqa: PTH113  no error for a long name


def overlays_there(tasks: Iterable[Task], folder: Path | None) -> list[Path]:
    """Of these tasks' overlays, which lie in the folder now; one listing of an address."""
    overlays = [task.overlay for task in tasks if task.overlay is not None]
    if folder is None or not is_address(folder):
        return [path for path in overlays if is_here(path)]
    root = f"{folder}".rstrip("/")
    found = {f"{root}/{name}" for name in list_files(folder)}
    return [path for path in overlays if str(path) in found]


def recorded_outputs(output_dir: Path) -> dict[str, str]:
    """Image → mask of what the journals of a folder say is done, as they name them.

    Of a folder at an address: what its plans name. A damaged journal gives what comes before the
    damage; the job itself will say so. Raises UserError for a plan that cannot be read.
    """
    found: dict[str, str] = {}
    if is_address(output_dir):
        for _, path in plans_below(output_dir):
            plan = read_plan(path)
            found |= plan.others | plan.images
        return found
    for path in journals_below(output_dir):
        found |= {source: output for output, source in owners_in(path).items()}
    return found
