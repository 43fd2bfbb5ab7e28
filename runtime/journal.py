"""What a job has done, a line an image: a job that was killed goes on where it was."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.closing import Closing
from ..contract.errors import UserError
from .entries import (
    JOURNAL_FOLDER,
    Plans,
    first_of,
    former_in,
    image_entries,
    journals_below,
    overlays_in,
    owners_in,
)
from .inputs import real_folder
from .lines import JsonLines, in_use, locked
from .ownership import (
    RESTART,
    another_owner,
    is_here,
    overlays_there,
    recorded_outputs,
    refuse_foreign,
)
from .plan import Task, require_inside, whole_of
from .shards import WHOLE_JOURNAL, Shard, shard_from_journal
from .stamps import GONE, Stamp, stamp_of, status_of

FOLDER, NAME = JOURNAL_FOLDER, WHOLE_JOURNAL
FORMAT = "unetrt-journal-1"

_LINE = 1000
"""Images that one line of a plan names, or of what masks were there before."""


@dataclass(frozen=True, kw_only=True)
class JournalOptions:
    """model: SHA-256, from `digest_from_model`. restart: forget what an earlier run has done.

    shard: keeps a journal of its own, beside those of the others. overlay_dir: that of the tasks.
    """

    output_dir: Path
    model: str
    restart: bool = False
    shard: Shard | None = None
    overlay_dir: Path | None = None


@dataclass(frozen=True)
class _Done:
    output: str | None
    stamp: Stamp


class Journal(Closing):
    """OUTPUT_DIR/.unetrt/journal.jsonl: first what must match, then the images.

    It names all the images that are to be done before the first of them is, so that what was not
    reached is known without the inputs. A shard has its own: journal-I-of-N.jsonl.

    A line is written once its mask is in place, so that a kill costs work and nothing else.
    Raises UserError where the journal is another job's, in use, damaged or cannot be written.
    """

    def __init__(self, options: JournalOptions, header: dict[str, Any]) -> None:
        """header: what else must match, as JSON has it; model and format are added."""
        self.output_dir = options.output_dir
        overlays = self._overlay_dir = options.overlay_dir
        self._overlays = None if overlays is None else str(real_folder(overlays))
        self.shard = options.shard
        self._folders: dict[Path, Path] = {}
        self._header: dict[str, Any] | None = None
        self._owners: dict[str, str] = {}
        self._former: dict[str, str] = {}
        name = NAME if options.shard is None else options.shard.journal
        path = self.output_dir / FOLDER / name
        require_inside([path], self.output_dir)
        self._lines = JsonLines(path)
        wanted = json.loads(json.dumps({"journal": FORMAT, "model": options.model, **header}))
        try:
            self._check_others(wanted, options.restart)
            self._begin(wanted, options.restart)
        except BaseException:
            self.close()
            raise

    def _check_others(self, header: dict[str, Any], restart: bool) -> None:
        """The journals of other shards, of a whole job, or of another number of shards.

        Raises UserError where one is another job's, or in use by what is no shard beside this one.
        A restart forgets the latter: a whole job all of them, a shard those of another job.
        """
        count = 1 if self.shard is None else self.shard.count
        for path in journals_below(self.output_dir):
            shard = shard_from_journal(path.name)
            if path == self._lines.path or shard is None:
                continue
            with suppress(FileNotFoundError):  # another restart has forgotten it meanwhile
                if shard.count == count > 1:
                    self._check_sibling(path, header, restart)
                else:
                    self._check_stranger(path, header, restart)

    def _check_sibling(self, path: Path, header: dict[str, Any], restart: bool) -> None:
        """Shards that are all started again do so one by one: each looks after its own journal.

        One that has begun goes on, whatever the others are; a new one does not join another job.
        """
        if not restart and first_of(self._lines.path) is None:
            first = first_of(path)
            if first is not None:
                check_same(first, header, self.output_dir)

    def _check_stranger(self, path: Path, header: dict[str, Any], restart: bool) -> None:
        if in_use(path):
            raise locked(path)
        if not restart:
            first = first_of(path)
            if first is not None:
                check_same(first, header, self.output_dir)
        elif self.shard is None or not _begins(path, header):
            self._former |= owners_in(path)
            path.unlink(missing_ok=True)

    def _begin(self, header: dict[str, Any], restart: bool) -> None:
        if restart:
            self._former |= owners_in(self._lines.path)
            self._lines.clear()
            self._lines.append(header)
            for part in _parts(self._former):
                self._lines.append({"former": part})
            return
        first = first_of(self._lines.path)
        if first is None:
            self._header = header  # written with the first line: until then no job has begun
        else:
            check_same(first, header, self.output_dir)
            self._former = former_in(self._lines.path)

    def _append(self, entry: dict[str, Any] | None = None) -> None:
        if self._header is not None:
            self._lines.append(self._header)
            self._header = None
        if entry is not None:
            self._lines.append(entry)

    def remaining(self, tasks: Sequence[Task], whole: Path | None = None) -> list[Task]:
        """Tasks that are not done: new, failed, changed since, or without their mask.

        whole: the one file of all masks, where there is one. Raises UserError where a mask in place
        is that of another image, and where files that no job has written would be replaced.
        """
        done: dict[str, _Done] = {}
        plans = Plans()
        for entry in image_entries(self._lines.path, plans):
            source, output = entry["input"], entry["output"]
            done.pop(source, None)
            if entry["status"] == "done":
                done[source] = _Done(output, (entry["size"], entry["mtime_ns"]))
                if output is not None:
                    self._owners[output] = source
        self._check_foreign(tasks, plans, whole)
        self._append()
        self._record_overlays(plans)
        self._record_plan([self._source(task) for task in tasks], plans, whole_of(tasks))
        left = [task for task in tasks if not self._is_done(task, done.get(self._source(task)))]
        self._check_owners(left)
        return left

    def _check_foreign(self, tasks: Iterable[Task], plans: Plans, whole: Path | None) -> None:
        """Files in the places of what this run is the first to write, and no job has written.

        What was planned before may lie there without its line. Another journal of this folder may
        be that of the same job, in other shards.
        """
        first = self._header is not None
        if not (first or plans.whole):
            return  # a restart, or begun by a version without plans
        new = [task for task in tasks if self._source(task) not in plans.images]
        found = [path for path in (whole,) if first and path is not None and is_here(path)]
        here = [task for task in new if any(map(is_here, task.files))]
        ours = recorded_outputs(self.output_dir) if here else {}
        for task in here:
            output = self._output(task)
            owned = output in self._former or (not first and output in self._owners)
            if not owned and ours.get(self._source(task)) != output:
                found += [path for path in task.files if is_here(path)]
        if self._has_new_overlays(plans):
            found += overlays_there(tasks, self._overlay_dir)
        refuse_foreign(list(dict.fromkeys(found)))

    def _has_new_overlays(self, plans: Plans) -> bool:
        """Whether no run into this folder, of another shard neither, has written overlays there."""
        if self._overlays is None or self._overlays in plans.overlays:
            return False
        return not any(self._overlays in overlays_in(p) for p in journals_below(self.output_dir))

    def _record_overlays(self, plans: Plans) -> None:
        if self._overlays is not None and self._overlays not in plans.overlays:
            self._append({"overlays": self._overlays})

    def owns(self, task: Task) -> bool:
        """Whether the mask in its place was made of this image by a job before."""
        output, source = self._output(task) or "", self._source(task)
        return source in (self._owners.get(output), self._former.get(output))

    def require_in_place(self) -> None:
        """Raise UserError where the journal has been removed while the job ran."""
        self._lines.require_in_place()

    def _record_plan(self, sources: list[str], plans: Plans, mark: str) -> None:
        """A shard's is the last one; all those of a whole job count: each image is named once."""
        if plans.whole and self._lines.path.name == NAME:
            sources = [source for source in sources if source not in plans.images]
            if not sources:
                return
        elif plans.whole and plans.last == sources and plans.mark == mark:
            return
        more = {"list": mark} if mark else {}
        for start in range(0, max(1, len(sources)), _LINE):
            part = sources[start : start + _LINE]
            self._append({"planned": part, "from": start, "of": len(sources), **more})

    def _is_done(self, task: Task, done: _Done | None) -> bool:
        if done is None or done.output != self._output(task):
            return False
        if not all(map(is_written, task.files)):
            return False
        try:
            return stamp_of(task.source) == done.stamp
        except GONE:  # its mask is there
            return True
        except OSError:  # to read it says why
            return False

    def _check_owners(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            output, source = self._output(task), self._source(task)
            owner = self._owners.get(output or "", source)
            if task.output is not None and owner != source and task.output.is_file():
                raise another_owner(task.output, owner, source)

    def record(self, task: Task, stamp: Stamp, mask: dict[str, Any] | None = None) -> None:
        """Say that a task is done: its files are in place, or its mask is `mask`."""
        entry = {**self._names(task), "status": "done", "size": stamp[0], "mtime_ns": stamp[1]}
        self._append(entry if mask is None else {**entry, "mask": mask})

    def record_failure(self, task: Task, reason: str) -> None:
        self._append({**self._names(task), "status": "failed", "reason": reason})

    def recorded_masks(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Task, dict[str, Any]]]:
        """Place, task and mask of every task that is done, in the order of `tasks`.

        Then those of earlier runs into this folder that are not among them.
        """
        starts: dict[str, int] = {}
        for start, entry in self._lines.entries():
            if entry.get("status") == "done" and "mask" in entry:
                starts[entry["input"]] = start
            else:
                starts.pop(entry.get("input", ""), None)
        found = [
            (place, task, starts.pop(source))
            for place, task in enumerate(tasks)
            if (source := self._source(task)) in starts
        ]
        others = [Task(Path(source), None) for source in starts]
        found += zip(itertools.count(len(tasks)), others, starts.values(), strict=False)
        entries = self._lines.entries_at(start for _, _, start in found)
        for (place, task, _), entry in zip(found, entries, strict=True):
            yield place, task, entry["mask"]

    def _names(self, task: Task) -> dict[str, str | None]:
        return {"input": self._source(task), "output": self._output(task)}

    def _source(self, task: Task) -> str:
        """Absolute, the links of its folder followed: the same from every working folder."""
        folder = task.source.parent
        if folder not in self._folders:
            self._folders[folder] = real_folder(folder)
        return f"{self._folders[folder]}{os.sep}{task.source.name}"

    def _output(self, task: Task) -> str | None:
        return None if task.output is None else str(task.output.relative_to(self.output_dir))

    def close(self) -> None:
        """Let another job write here; twice is harmless."""
        self._lines.close()


def _begins(path: Path, header: dict[str, Any]) -> bool:
    """Whether it is a journal of this job; a damaged one is not."""
    with suppress(UserError):
        first = first_of(path)
        if first is not None:
            check_same(first, header, path)
            return True
    return False


def _parts(owners: dict[str, str]) -> Iterator[dict[str, str]]:
    items = iter(owners.items())
    while part := dict(itertools.islice(items, _LINE)):
        yield part


def is_written(path: Path) -> bool:
    """A power failure may leave a file of its name without what was in it."""
    try:
        status = status_of(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def check_same(found: dict[str, Any], wanted: dict[str, Any], output_dir: Path) -> None:
    """Raise UserError, which names what differs, unless both first lines are of one job."""
    before, now = _flat(found), _flat(wanted)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        raise UserError(
            f"{output_dir} holds masks of another job",
            seen=", ".join(f"{name} {_short(before.get(name))}" for name in differing),
            expected=", ".join(f"{name} {_short(now.get(name))}" for name in differing),
            hint=RESTART,
        )


def _flat(header: dict[str, Any]) -> dict[str, Any]:
    spec = header.get("spec")
    fields = spec if isinstance(spec, dict) else {"spec": spec}
    # The header's bit_depth is the one that images are read with, the spec's only the usual one.
    return fields | {name: value for name, value in header.items() if name != "spec"}


def _short(value: object) -> str:
    return value[:12] + "…" if isinstance(value, str) and len(value) == 64 else json.dumps(value)
