"""The journal of an output folder at an address: files cannot grow there, its masks tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..contract.addresses import modified_ns, store_errors, store_of, written_ns
from ..contract.closing import Closing
from ..contract.errors import UserError
from ..contract.files import write_atomically
from ..contract.log import log
from .address_plan import (
    Facts,
    Plan,
    job_from_header,
    list_files,
    plan_path,
    plans_among,
    read_plan,
    unreachable,
    write_plan,
)
from .inputs import located
from .journal import FOLDER, FORMAT, JournalOptions, check_same, is_written
from .ownership import another_owner, overlays_there, refuse_foreign
from .plan import Task, whole_of
from .stamps import GONE, Stamp, stamp_of

NAME = "job.json"


class AddressJournal(Closing):
    """OUTPUT/.unetrt/job.json says what must match; an image is done whose mask is of this job.

    Which image each mask is of, when the job began and what the images were then, the plans beside
    that file say. A store puts a file whole or not at all, so a mask that is younger than the
    beginning is one that was finished. Raises UserError as Journal does.
    """

    def __init__(self, options: JournalOptions, header: dict[str, Any]) -> None:
        """header: what must match, as JSON has it; the model is added."""
        self.output_dir, self._overlay_dir = options.output_dir, options.overlay_dir
        if options.restart and options.shard is not None:
            raise UserError(
                "--restart would make the masks of all shards old",
                seen=f"--restart with --shard {options.shard} below {self.output_dir}",
                hint="--output-dir ADDRESS   with another ADDRESS",
            )
        wanted = {"journal": FORMAT, "model": options.model, **header}
        self._header: dict[str, Any] = json.loads(json.dumps(wanted))
        self._job = job_from_header(self._header)
        self._restart, self._begins = options.restart, options.restart or not self._matches()
        self._files = list_files(self.output_dir)
        self._plan_path = plan_path(self.output_dir, options.shard)
        plan = Plan() if self._begins else read_plan(self._plan_path)
        self._plan = plan if plan.is_of(self._job) else Plan()
        self._failed, self._stamps = dict(self._plan.failed), dict(self._plan.stamps)
        self._folders: dict[str, str] = {}

    def _matches(self) -> bool:
        """Whether there is a job, which is this one. UserError: it is another one."""
        found = read_header(self.output_dir)
        if found is not None:
            check_same(found, self._header, self.output_dir)
            self._job = job_from_header(found)  # as it lies there: it may lack what is usual now
        return found is not None

    def remaining(self, tasks: Sequence[Task], whole: Path | None = None) -> list[Task]:
        """Tasks whose mask is not there, or not of this job and of the image as it is now.

        whole: None, as no file can grow here. Raises UserError where a mask in place is that of
        another image, and where a first run would replace files.
        """
        images = list(located((task.source for task in tasks), self._folders))
        names = [self._name(task) for task in tasks]
        owners = self._check_owners(tasks, images, names)
        if self._begins:
            self._begin()
        stamps: dict[str, Stamp] = {}
        left = []
        for task, image, name in zip(tasks, images, names, strict=True):
            _, plan = owners.get(name, (image, None))
            if plan is None or not self._is_done(task, image, name, plan, stamps):
                left.append(task)
        named = dict(zip(images, names, strict=True))
        plan = replace(self._plan.followed_by(named, stamps), job=self._job)
        plan = replace(plan, begun=self._plan.begun or self._begun(), mark=whole_of(tasks))
        if plan != self._plan:
            write_plan(self._plan_path, plan)
        self._plan, self._failed, self._stamps = plan, {}, dict(plan.stamps)
        return left

    def _begin(self) -> None:
        """Another shard may have begun meanwhile: its header stays, and its plan."""
        try:
            if self._restart:  # first: a header alone would make old masks those of this job
                for _, path in plans_among(self._files, self.output_dir):
                    with store_errors():
                        path.unlink(missing_ok=True)
            if self._restart or not self._matches():
                header = json.dumps(self._header).encode()
                write_atomically(self.output_dir / FOLDER / NAME, header)
        except OSError as error:
            raise unreachable(self.output_dir, error) from error

    def _begun(self) -> int:
        """When, by the store's clock: for a plan of its own, which no later shard changes."""
        if not self._begins:
            return begun_ns(self._files)
        path = self.output_dir / FOLDER / NAME
        try:
            return written_ns(path)
        except OSError as error:
            raise unreachable(path, error) from error

    def _check_owners(
        self, tasks: Sequence[Task], images: Sequence[str], names: Sequence[str]
    ) -> dict[str, tuple[str, Plan]]:
        """Mask → its image and the plan of this job that says so.

        Raises UserError where it is another image's, and on a first run where no plan knows it.
        """
        if self._restart:
            return {}
        there = [
            (task.output, name, image)
            for task, image, name in zip(tasks, images, names, strict=True)
            if task.output is not None and self._facts(name)
        ]
        owners = {name: (image, self._plan) for name, image in self._plan.owners.items()}
        unknown = {name for _, name, _ in there} - owners.keys()
        for plan in self._other_plans() if unknown and not self._begins else ():
            found = plan.owners.items()
            owners |= {name: (image, plan) for name, image in found if name in unknown}
        for mask, name, image in there:
            owner, _ = owners.get(name, (image, None))
            if owner != image:
                raise another_owner(mask, owner, image)
        if self._plan == Plan():
            foreign = [mask for mask, name, _ in there if name not in owners]
            refuse_foreign(foreign + self._foreign_overlays(tasks))
        return owners

    def _foreign_overlays(self, tasks: Sequence[Task]) -> list[Path]:
        """Of masks that no plan of this job names: those of a run before are of this job."""
        found = set(overlays_there(tasks, self._overlay_dir))
        plans = self._other_plans() if found and not self._begins else ()
        ours = {name for plan in plans for name in plan.owners}
        return [t.overlay for t in tasks if t.overlay in found and self._name(t) not in ours]

    def _other_plans(self) -> Iterator[Plan]:
        """Of this job: of other shards, of another number of them, or of the whole."""
        for _, path in plans_among(self._files, self.output_dir):
            if path != self._plan_path and (plan := read_plan(path)).is_of(self._job):
                yield plan

    def _name(self, task: Task) -> str:
        """Of the mask, below the output folder."""
        assert task.output is not None  # what keeps a journal writes masks
        folder = f"{self.output_dir}".rstrip("/") + "/"
        text = f"{task.output}"
        assert text.startswith(folder)
        return text[len(folder) :]  # upath's relative_to takes thirty times as long

    def _facts(self, name: str) -> dict[str, Any] | None:
        """What the store said of a mask when the job began."""
        return self._files.get(PurePosixPath(name))

    def owns(self, task: Task) -> bool:
        """Whether a mask was in its place, of a job before: a first run found none."""
        return (
            self._facts(self._name(task)) is not None and PurePosixPath(FOLDER, NAME) in self._files
        )

    def require_in_place(self) -> None:
        """Files of a store are in no folder that could go."""

    def _is_done(
        self, task: Task, image: str, name: str, plan: Plan, stamps: dict[str, Stamp]
    ) -> bool:
        """Add the image's stamp; plan: which names it."""
        facts = self._facts(name)
        if facts is None or not is_finished(facts, plan.begun or begun_ns(self._files)):
            return False
        if task.overlay is not None and not is_written(task.overlay):
            return False
        known = plan.stamps.get(image)
        try:
            stamp = stamp_of(task.source)
        except GONE:  # its mask is there
            return True
        except OSError:  # to read it says why
            return False
        # A run that was killed has not said what the image was: then the younger one tells.
        if stamp != known if known else stamp[1] > modified_ns(facts):
            return False
        stamps[image] = stamp
        return True

    def record(self, task: Task, stamp: Stamp, mask: dict[str, Any] | None = None) -> None:
        """The mask is there: that is the record. The stamp is kept for the end of the run."""
        self._stamps[self._image(task)] = stamp

    def record_failure(self, task: Task, reason: str) -> None:
        """Kept for the end of the run; without a mask it is done again next time."""
        self._failed[self._image(task)] = reason

    def _image(self, task: Task) -> str:
        return next(located([task.source], self._folders))

    def recorded_masks(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, dict[str, Any]]]:
        """None: masks that no file holds need a journal that grows."""
        return iter(())

    def close(self) -> None:
        """Write down what has failed, and what the images were."""
        plan = replace(self._plan, failed=self._failed, stamps=self._stamps)
        if plan == self._plan:
            return
        self._plan = plan
        try:
            write_plan(self._plan_path, self._plan)
        except UserError as error:  # the masks are there, and what ended the job is told
            log.warning("%s", error.reason)


def read_header(output_dir: Path) -> dict[str, Any] | None:
    """What must match of the job below an address; None where there is none. UserError."""
    path = output_dir / FOLDER / NAME
    try:
        with store_errors():
            store_of(path)[0].invalidate_cache()  # another shard may have written it just now
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
