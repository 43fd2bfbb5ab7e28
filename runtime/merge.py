"""What all the shards of a job have done, read from their journals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from ..contract.addresses import is_address
from ..contract.errors import UserError, as_word
from .address_journal import begun_ns, is_finished, read_header
from .address_plan import Facts, job_from_header, list_files, plans_among, read_plan
from .entries import Plans, first_of, image_entries, journals_below
from .journal import FOLDER, check_same, is_written
from .shards import WHOLE_JOURNAL, Shard, shard_from_journal


@dataclass
class Merged:
    """planned = done + failed + skipped over all shards that have begun.

    skipped: planned and not reached, or recorded as done without its mask; `missing_images` names
    them. missing_shards: those that have not begun ("3/8"), whose images nobody has counted.
    unplanned: journals without a plan, of an older version: what they do not name is not counted.
    lists: where the shards were not cut from one list of images, the number of images in each, and
    its shards. twice: images that more than one shard was given.
    """

    planned: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    missing_shards: list[str] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    lists: list[dict[str, Any]] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def fail(self, image: str, reason: str) -> None:
        self.failed += 1
        self.failures.append({"input": image, "reason": reason})

    def skip(self, image: str) -> None:
        self.skipped += 1
        self.missing_images.append(image)

    @property
    def complete(self) -> bool:
        missing = self.missing_shards or self.missing_images or self.unplanned
        return not (self.failed or missing or self.lists or self.twice)

    @property
    def text(self) -> str:
        numbers = f"{self.planned} planned = {self.done} done + {self.failed} failed"
        missing = len(self.missing_shards)
        unknown = f"; shards that have not begun: {missing}" if missing else ""
        if self.unplanned:
            unknown += "; what was planned is unknown: run the same job again, then merge"
        if self.lists or self.twice:
            unknown += "; the shards are not of one list: run each again on the same images"
        return f"{numbers} + {self.skipped} skipped{unknown}"

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class _Found:
    """A journal below an output folder; at an address a plan, and what its store lists there."""

    shard: Shard
    output_dir: Path
    path: Path
    files: Facts | None = None

    def header(self) -> dict[str, Any] | None:
        """What must match."""
        if self.files is not None:
            return read_header(self.output_dir)
        return first_of(self.path)

    def add_to(self, merged: Merged, header: dict[str, Any]) -> _Planned | None:
        """Count what it says; None for a shard that was ended before it had its plan."""
        if self.files is None:
            return _add_journal(self, merged)
        return _add_plan(self, self.files, merged, job_from_header(header))


@dataclass(frozen=True)
class _Planned:
    """What a shard was given; mark: of the list that this was cut from, "" where it says none."""

    images: Collection[str]
    mark: str


def merge_journals(folders: Sequence[Path]) -> Merged:
    """Read the journals of a job's shards, also while some of them run.

    Raises UserError where there is none, where they are of several jobs, of different numbers of
    shards or of one shard twice, and where one is damaged.
    """
    journals = [journal for folder in folders for journal in _journals_below(folder)]
    _check_numbers(journals)
    first: dict[str, Any] | None = None
    merged = Merged()
    begun: dict[Shard, _Planned] = {}
    for journal in journals:
        header = journal.header()
        if header is None:
            continue
        first = first or header
        check_same(header, first, journal.output_dir)
        planned = journal.add_to(merged, header)
        if planned is not None:
            begun[journal.shard] = planned
    count = journals[0].shard.count
    every = (Shard(index, count) for index in range(1, count + 1))
    merged.missing_shards = [str(shard) for shard in every if shard not in begun]
    _compare_lists(begun, merged)
    return merged


def _compare_lists(begun: dict[Shard, _Planned], merged: Merged) -> None:
    """Shards of several lists may have left out an image that none of them was given."""
    shards: dict[str, list[str]] = {}
    for shard, planned in begun.items():
        if planned.mark:
            shards.setdefault(planned.mark, []).append(str(shard))
    if len(shards) > 1:
        numbers = [(int(mark.partition("-")[0]), names) for mark, names in shards.items()]
        merged.lists = [{"images": number, "shards": names} for number, names in numbers]
    seen: set[str] = set()
    twice: set[str] = set()
    for planned in begun.values():
        twice |= seen.intersection(planned.images)
        seen.update(planned.images)
    merged.twice = sorted(twice)


def _journals_below(folder: Path) -> Iterator[_Found]:
    files = list_files(folder) if is_address(folder) else None
    if files is not None:
        found = list(plans_among(files, folder))
    else:
        paths = journals_below(folder)
        found = [(shard, path) for path in paths if (shard := shard_from_journal(path.name))]
        found = list(_one_whole(found))
    if not found:
        raise UserError(
            f"no journal below {folder}",
            seen="no such folder" if not folder.is_dir() else f"nothing of a job in {FOLDER}",
            expected="an --output-dir of unetrt predict",
            hint="unetrt predict -m MODEL -i IMAGES --output-dir DIR --shard 1/8",
        )
    for shard, path in sorted(found, key=itemgetter(0)):
        yield _Found(shard, folder, path, files)


def _one_whole(found: list[tuple[Shard, Path]]) -> Iterator[tuple[Shard, Path]]:
    """A job without shards and --shard 1/1 may both have run into a folder: the last one counts."""
    whole = [path for shard, path in found if shard.count == 1]
    yield from ((shard, path) for shard, path in found if shard.count > 1)
    if whole:
        status = {path: path.stat() for path in whole}
        last = max(whole, key=lambda path: (status[path].st_size > 0, status[path].st_mtime_ns))
        yield Shard(1, 1), last


def _check_numbers(journals: Sequence[_Found]) -> None:
    seen: dict[Shard, Path] = {}
    count = journals[0].shard.count
    for journal in journals:
        if journal.shard.count != count:
            raise UserError(
                "journals of a job with another number of shards",
                seen=journal.path,
                expected=f"journals of {count} shards, as {journals[0].path}",
                hint=_hint_of_numbers(journals, journal),
            )
        if journal.shard in seen:
            raise UserError(
                f"shard {journal.shard} has run into two folders",
                seen=f"{seen[journal.shard]} and {journal.output_dir}",
                expected="one folder for each shard",
                hint="unetrt predict --merge DIR …   with one of the two",
            )
        seen[journal.shard] = journal.output_dir


def _hint_of_numbers(journals: Sequence[_Found], other: _Found) -> str:
    """Of one folder the journals of the number that was written last are those that are meant."""
    first = journals[0]
    if other.output_dir != first.output_dir:
        return f"unetrt predict --merge {as_word(first.output_dir)}   without {other.output_dir}"
    folder = first.output_dir / FOLDER
    if first.files is not None:
        names = " or ".join(f"plan-*-of-{found.shard.count}.json.gz" for found in (first, other))
        return f"remove {names} below {folder}, with the store's own command: the older ones"
    written: dict[int, float] = {}
    for found in (found for found in journals if found.output_dir == first.output_dir):
        count = found.shard.count
        written[count] = max(written.get(count, 0.0), found.path.stat().st_mtime)
    older = min(written, key=lambda count: written[count])
    whole = next(found.path.name for found in journals if found.shard.count == older)
    paths = whole if older == 1 else f"journal-*-of-{older}.jsonl"
    return f"rm {as_word(folder)}/{paths}   removes those that were written first; no mask goes"


def _add_plan(found: _Found, files: Facts, merged: Merged, job: str) -> _Planned | None:
    """At an address the masks say what is done."""
    plan = read_plan(found.path)
    if not plan.is_of(job):
        return None
    begun = plan.begun or begun_ns(files)
    merged.planned += len(plan.images)
    for image, name in plan.images.items():
        facts = files.get(PurePosixPath(name))
        if image in plan.failed:
            merged.fail(image, plan.failed[image])
        elif facts is not None and is_finished(facts, begun):
            merged.done += 1
        else:
            merged.skip(image)
    return _Planned(plan.images, plan.mark)


def _add_journal(journal: _Found, merged: Merged) -> _Planned | None:
    plans = Plans()
    last = {
        entry["input"]: (entry["status"], entry["output"], entry.get("reason", ""))
        for entry in image_entries(journal.path, plans)  # without the mask of an rle job's entry
    }
    planned: Collection[str] | None
    if journal.path.name == WHOLE_JOURNAL:
        planned = (plans.images | dict.fromkeys(last)) or None
        if planned and not plans.whole:
            merged.unplanned.append(str(journal.path))
    else:
        planned = plans.last if plans.whole else None
    if planned is None:
        return None
    merged.planned += len(planned)
    for source in planned:
        status, output, reason = last.get(source, ("skipped", None, ""))
        if status == "failed":
            merged.fail(source, str(reason))
        elif status == "done" and _is_there(journal.output_dir, output):
            merged.done += 1
        else:
            merged.skip(source)
    return _Planned(planned, plans.mark)


def _is_there(output_dir: Path, output: str | None) -> bool:
    """Whether the mask of an image that was done is still in its place."""
    return output is None or is_written(output_dir / output)
