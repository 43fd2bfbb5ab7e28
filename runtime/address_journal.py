"""The journal of an output folder at an address: files cannot grow there, its masks tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from ..contract.addresses import files_below, modified_ns, written_ns
from ..contract.closing import Closing
from ..contract.errors import UserError
from ..contract.files import write_atomically
from .journal import FOLDER, FORMAT, JournalOptions, Stamp, check_same, refuse_foreign
from .plan import Task

NAME = "job.json"


class AddressJournal(Closing):
    """OUTPUT/.unetrt/job.json says what must match; an image is done whose mask is younger.

    Younger than that file and than the image. A store puts a file whole or not at all, so a mask
    that lies there is one that was finished. Raises UserError as Journal does.
    """

    shared = True

    def __init__(self, options: JournalOptions, header: dict[str, Any]) -> None:
        """header: what must match, as JSON has it; the model is added."""
        self.output_dir = options.output_dir
        self._path = self.output_dir / FOLDER / NAME
        wanted = {"journal": FORMAT, "model": options.model, **header}
        if options.restart and options.shard is not None:
            raise UserError(
                "--restart would make the masks of all shards old",
                seen=f"--restart with --shard {options.shard} below {self.output_dir}",
                hint="--output-dir ADDRESS   with another ADDRESS",
            )
        found = None if options.restart else self._header()
        if found is not None:
            check_same(found, json.loads(json.dumps(wanted)), self.output_dir)
        self._restart, self._wanted = options.restart, None if found else wanted
        try:
            self._files = files_below(self.output_dir)
        except OSError as error:
            raise _unreachable(self.output_dir, error) from error

    def _header(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _unreachable(self._path, error) from error
        if not isinstance(found, dict):
            raise _unreachable(self._path, ValueError("no JSON object"))
        return found

    def remaining(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks whose mask is not there, or older than the job or their image.

        Raises UserError where a first run would replace files.
        """
        if self._wanted is not None:
            self._begin(tasks, self._wanted)
            return list(tasks)
        header = self._files.get(PurePosixPath(FOLDER, NAME))
        begun = modified_ns(header) if header else 0
        return [task for task in tasks if not self._is_done(task, begun)]

    def _begin(self, tasks: Sequence[Task], wanted: dict[str, Any]) -> None:
        if not self._restart:
            there = [task.output for task in tasks if task.output and self._facts(task)]
            refuse_foreign(there)
        try:
            write_atomically(self._path, json.dumps(wanted).encode())
        except OSError as error:
            raise _unreachable(self.output_dir, error) from error

    def _facts(self, task: Task) -> dict[str, Any] | None:
        """What the store said of the mask when the job began."""
        if task.output is None:
            return None
        return self._files.get(PurePosixPath(str(task.output.relative_to(self.output_dir))))

    def owns(self, task: Task) -> bool:
        """Whether a mask was in its place, of a job before: a first run found none."""
        return self._facts(task) is not None and PurePosixPath(FOLDER, NAME) in self._files

    def require_in_place(self) -> None:
        """Files of a store are in no folder that could go."""

    def _is_done(self, task: Task, begun: int) -> bool:
        facts = self._facts(task)
        if facts is None or modified_ns(facts) < begun or not facts.get("size", 1):
            return False
        if task.overlay is not None and not task.overlay.is_file():
            return False
        try:
            return written_ns(task.source) <= modified_ns(facts)
        except OSError:  # the image has gone; its mask is there
            return True

    def record(self, task: Task, stamp: Stamp, mask: dict[str, Any] | None = None) -> None:
        """The mask is there: that is the record."""

    def record_failure(self, task: Task, reason: str) -> None:
        """Without a mask it is done again next time."""

    def recorded_masks(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, dict[str, Any]]]:
        """None: masks that no file holds need a journal that grows."""
        return iter(())


def _unreachable(path: object, error: Exception) -> UserError:
    return UserError(
        f"cannot use {path}",
        seen=error,
        expected="an address that this machine may read and write",
        hint="check the name, the region and the credentials of the store",
    )
