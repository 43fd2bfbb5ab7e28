"""What a killed job was writing, known by its name (see atomic_path)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..contract.addresses import is_address
from ..contract.files import temporary_key

_TEMPORARY = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.tmp")


def remove_temporaries_of(targets: set[Path]) -> None:
    """Remove what a killed job was writing in place of `targets`, and of no other file.

    Another job may write into the same folder, or below it: its files are not ours to remove.
    """
    here = [path for path in targets if not is_address(path)]
    # Older versions had the whole name in that of the temporary.
    keys = {(path.parent, key) for path in here for key in (path.name, temporary_key(path.name))}
    for folder in {path.parent for path in here}:
        try:
            entries = os.scandir(folder)
        except OSError:  # it is not there, or has a name too long: none of ours is in it
            continue
        with entries:  # one at a time: there may be a million
            for entry in entries:
                found = _TEMPORARY.fullmatch(entry.name)
                if found and (folder, found[1]) in keys:
                    Path(entry).unlink(missing_ok=True)
