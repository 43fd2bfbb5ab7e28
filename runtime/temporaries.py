"""What a killed job was writing, known by its name (see atomic_path)."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..contract.addresses import is_address
from ..contract.files import temporary_key

_TEMPORARY = re.compile(r"\.(.+)\.(\d+)-[0-9a-f]{8}\.tmp")
_STARTED = time.time()


def remove_temporaries_of(targets: set[Path], locked: bool = True) -> None:
    """Remove what a killed job was writing in place of `targets`, and of no other file.

    Another job may write into the same folder, or below it: its files are not ours to remove.
    locked: no other process writes these targets, so that whatever is there was left behind; else
    a file stays whose process runs.
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
                if found is None or (folder, found[1]) not in keys:
                    continue
                if locked:
                    Path(entry).unlink(missing_ok=True)
                elif _is_left(Path(entry), int(found[2])):
                    with suppress(OSError):  # another user's, in a folder of all: it does no harm
                        Path(entry).unlink()


def _is_left(path: Path, process: int) -> bool:
    """Whether the process of this number, which was writing the file, has ended."""
    if process == os.getpid():  # in containers each job may have the number of the one before
        with suppress(OSError):
            return path.stat().st_mtime < _STARTED
        return False
    if sys.platform == "win32":  # there is no signal that only asks
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
