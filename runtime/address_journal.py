"""The journal of an output folder at an address: files cannot grow there, its masks tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..contract.addresses import modified_ns, written_ns
from ..contract.closing import Closing
from ..contract.errors import UserError
from ..contract.files import write_atomically
from ..contract.log import log
from .address_plan import (
    Facts,
    Plan,
    list_files,
    plan_path,
    plans_among,
    read_plan,
    unreachable,
    write_plan,
)
from .inputs import located
from .journal import (
    FOLDER,
    FORMAT,
    JournalOptions,
    Stamp,
    another_owner,
    check_same,
    refuse_foreign,
)
from .plan import Task

NAME = "job.json"


class AddressJournal(Closing):
    """OUTPUT/.unetrt/job.json says what must match; an image is done whose mask is younger.

    Younger than that file and than the image. A store puts a file whole or not at all, so a mask
    that lies there is one that was finished. Which image it is of, the plan beside that file says.
    Raises UserError as Journal does.
    """

    def __init__(self, options: JournalOptions, header: dict[str, Any]) -> None:
        """header: what must match, as JSON has it; the model is added."""
        self.output_dir = options.output_dir
        wanted = {"journal": FORMAT, "model": options.model, **header}
        if options.restart and options.shard is not None:
            raise UserError(
                "--restart would make the masks of all shards old",
                seen=f"--restart with --shard {options.shard} below {self.output_dir}",
                hint="--output-dir ADDRESS   with another ADDRESS",
            )
        found = None if options.restart else read_header(self.output_dir)
        if found is not None:
            check_same(found, json.loads(json.dumps(wanted)), self.output_dir)
        self._restart, self._wanted = options.restart, None if found else wanted
        self._files = list_files(self.output_dir)
        self._plan_path = plan_path(self.output_dir, options.shard)
        self._plan = read_plan(self._plan_path) if found else Plan()
        self._failed = dict(self._plan.failed)

    def remaining(self, tasks: Sequence[Task], whole: Path | None = None) -> list[Task]:
        """Tasks whose mask is not there, or older than the job or their image.

        whole: None, as no file can grow here. Raises UserError where a mask in place is that of
        another image, and where a first run would replace files.
        """
        images = _images(tasks)
        if self._wanted is None:
            begun, owners = begun_ns(self._files), self._plan.owners
            left = []
            for task, image in zip(tasks, images, strict=True):
                self._check_owner(task, image, owners)
                if not self._is_done(task, begun):
                    left.append(task)
        else:
            self._begin(tasks, self._wanted)
            left = list(tasks)
        plan = self._plan.followed_by(
            {image: str(self._name(task)) for image, task in zip(images, tasks, strict=True)}
        )
        if plan != self._plan:
            write_plan(self._plan_path, plan)
        self._plan, self._failed = plan, {}
        return left

    def _begin(self, tasks: Sequence[Task], wanted: dict[str, Any]) -> None:
        if not self._restart:
            there = [task.output for task in tasks if task.output and self._facts(task)]
            refuse_foreign(there)
        try:
            write_atomically(self.output_dir / FOLDER / NAME, json.dumps(wanted).encode())
            for _, path in plans_among(self._files, self.output_dir):  # of an older job, in shards
                path.unlink()
        except OSError as error:
            raise unreachable(self.output_dir, error) from error

    def _check_owner(self, task: Task, image: str, owners: dict[str, str]) -> None:
        owner = owners.get(str(self._name(task)), image)
        if task.output is not None and owner != image and self._facts(task):
            raise another_owner(task.output, owner, image)

    def _name(self, task: Task) -> PurePosixPath:
        """Of the mask, below the output folder."""
        assert task.output is not None  # what keeps a journal writes masks
        return PurePosixPath(str(task.output.relative_to(self.output_dir)))

    def _facts(self, task: Task) -> dict[str, Any] | None:
        """What the store said of the mask when the job began."""
        return self._files.get(self._name(task))

    def owns(self, task: Task) -> bool:
        """Whether a mask was in its place, of a job before: a first run found none."""
        return self._facts(task) is not None and PurePosixPath(FOLDER, NAME) in self._files

    def require_in_place(self) -> None:
        """Files of a store are in no folder that could go."""

    def _is_done(self, task: Task, begun: int) -> bool:
        facts = self._facts(task)
        if facts is None or not is_finished(facts, begun):
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
        """Kept for the end of the run; without a mask it is done again next time."""
        self._failed[_images([task])[0]] = reason

    def recorded_masks(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, dict[str, Any]]]:
        """None: masks that no file holds need a journal that grows."""
        return iter(())

    def close(self) -> None:
        """Write down what has failed."""
        if self._failed == self._plan.failed:
            return
        self._plan = replace(self._plan, failed=self._failed)
        try:
            write_plan(self._plan_path, self._plan)
        except UserError as error:  # the masks are there, and what ended the job is told
            log.warning("%s", error.reason)


def _images(tasks: Sequence[Task]) -> list[str]:
    return list(located(task.source for task in tasks))


def read_header(output_dir: Path) -> dict[str, Any] | None:
    """What must match of the job below an address; None where there is none. UserError."""
    path = output_dir / FOLDER / NAME
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unreachable(path, error) from error
    if not isinstance(found, dict):
        raise unreachable(path, ValueError("no JSON object"))
    return found


def begun_ns(files: Facts) -> int:
    """When the job of these files began; 0 where they hold none."""
    header = files.get(PurePosixPath(FOLDER, NAME))
    return modified_ns(header) if header else 0


def is_finished(facts: dict[str, Any], begun: int) -> bool:
    """Whether this file of a store is a mask of the job that began then."""
    return modified_ns(facts) >= begun and bool(facts.get("size", 1))
