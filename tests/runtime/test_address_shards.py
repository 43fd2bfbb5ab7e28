"""Jobs that share an output folder at an address: what one has made stays its own."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_journal import MODEL, counts, flat
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.runtime import address_journal
from unetrt.runtime.address_journal import AddressJournal
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.merge import merge_journals
from unetrt.runtime.ownership import recorded_outputs
from unetrt.runtime.plan import plan_tasks, tasks_of_shard
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard

OUT = path_from_text("memory://shared/masks")
JOB = "/shared/masks/.unetrt/job.json"
PICTURES = 6
Job = Callable[..., Summary]


@pytest.fixture
def job(store: Any, tmp_path: Path) -> Job:
    def run(images: str = "in", model: str = MODEL, **journal: Any) -> Summary:
        tasks = plan_tasks([str(tmp_path / images)], output_dir=OUT, recorded=recorded_outputs(OUT))
        shard = journal.get("shard")
        tasks = tasks if shard is None else tasks_of_shard(tasks, shard, OUT)
        options = JournalOptions(output_dir=OUT, model=model, **journal)
        with ThresholdEngine() as engine:
            return predict_masks(engine, tasks, PredictOptions(journal=options))

    return run


def write_flat(folder: Path, value: int) -> list[Path]:
    return [write_picture(folder / f"{index}.png", flat(value)) for index in range(PICTURES)]


def masks_in(store: Any) -> dict[str, bytes]:
    names = [name for name in store.find("/shared/masks") if "/.unetrt/" not in name]
    return {name: store.cat_file(name) for name in names}


def test_a_job_begun_before_the_spec_had_a_field_is_merged(
    job: Job, store: Any, tmp_path: Path
) -> None:
    """What is missing in its header is what is usual: its plans are of the job that lies there."""
    write_flat(tmp_path / "in", 1)
    job(shard=Shard(1, 2))
    header = json.loads(store.cat_file(JOB))
    store.rm("/shared/masks/.unetrt", recursive=True)
    for name in masks_in(store):
        store.rm(name)
    del header["spec"]["bit_depth"]
    store.pipe_file(JOB, json.dumps(header).encode())
    done = sum(job(shard=Shard(index, 2)).done for index in (1, 2))
    merged = merge_journals([OUT])
    assert (merged.planned, merged.done, merged.complete) == (done, done, True)


def test_masks_of_another_folder_in_another_shard_are_not_this_ones(
    job: Job, store: Any, tmp_path: Path
) -> None:
    """The plan that knows them is that of a shard, the job one without shards."""
    write_flat(tmp_path / "a", 1)
    write_flat(tmp_path / "b", 2)
    job("a", shard=Shard(1, 2))
    before = masks_in(store)
    for options in ({}, {"shard": Shard(1, 4)}, {"shard": Shard(1, 2)}):
        with pytest.raises(UserError, match="mask of another image") as caught:
            job("b", **options)
        assert str(tmp_path / "a") in str(caught.value.seen)
        assert masks_in(store) == before
    again = job("a")
    assert counts(again) == (PICTURES - len(before), 0, len(before)), "its own are known"


def test_files_that_no_plan_names_are_not_replaced_by_a_shard_that_begins(
    job: Job, store: Any, tmp_path: Path
) -> None:
    write_flat(tmp_path / "in", 1)
    first = job(shard=Shard(1, 2))
    assert 0 < first.done < PICTURES
    for index in range(PICTURES):
        if f"/shared/masks/{index}.png" not in masks_in(store):
            store.pipe(f"/shared/masks/{index}.png", b"the truth")
    before = masks_in(store)
    with pytest.raises(UserError, match="no job of unetrt"):
        job(shard=Shard(2, 2))
    assert masks_in(store) == before


def beginning_with(
    monkeypatch: pytest.MonkeyPatch, other: Callable[[], object], after: bool = False
) -> None:
    """Let `other` happen just before a journal begins; after: just before it writes its header."""
    place = address_journal if after else AddressJournal
    name = "write_atomically" if after else "_begin"
    real, once = getattr(place, name), [other]

    def begun(*arguments: Any) -> None:
        if once:
            once.pop()()
        real(*arguments)

    monkeypatch.setattr(place, name, begun)


@pytest.mark.parametrize("after", [False, True], ids=["before it looks", "after it has looked"])
def test_shards_that_begin_together_leave_each_other_alone(
    after: bool, job: Job, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flat(tmp_path / "in", 1)
    with monkeypatch.context() as patch:
        beginning_with(patch, lambda: job(shard=Shard(1, 2)), after)
        second = job(shard=Shard(2, 2))
    assert second.failed == 0
    merged = merge_journals([OUT])
    assert (merged.planned, merged.done, merged.missing_shards) == (PICTURES, PICTURES, [])
    for index in (1, 2):
        assert job(shard=Shard(index, 2)).done == 0


def test_a_header_that_is_the_same_is_not_written_again(
    job: Job, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flat(tmp_path / "in", 1)
    written: list[object] = []

    def first() -> None:
        job(shard=Shard(1, 2))
        written.append(store.info(JOB)["created"])

    beginning_with(monkeypatch, first)
    job(shard=Shard(2, 2))
    assert written == [store.info(JOB)["created"]]


def test_a_shard_of_another_job_is_refused_also_when_they_begin_together(
    job: Job, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flat(tmp_path / "in", 1)
    beginning_with(monkeypatch, lambda: job(shard=Shard(1, 2)))
    with pytest.raises(UserError, match="masks of another job"):
        job(shard=Shard(2, 2), model="n" * 64)


def test_a_plan_of_another_job_says_nothing_of_this_one(
    job: Job, store: Any, tmp_path: Path
) -> None:
    """As where somebody has removed job.json and nothing else."""
    write_flat(tmp_path / "in", 1)
    for index in (1, 2):
        job(shard=Shard(index, 2))
    store.rm(JOB)
    for name in list(masks_in(store)):
        store.rm(name)
    first = job(shard=Shard(1, 2), model="n" * 64)
    assert merge_journals([OUT]).missing_shards == ["2/2"]
    assert first.done + job(shard=Shard(2, 2), model="n" * 64).done == PICTURES


def test_an_image_replaced_by_an_older_one_is_done_again(
    job: Job, store: Any, tmp_path: Path
) -> None:
    sources = write_flat(tmp_path / "in", 1)
    job()
    before = masks_in(store)
    write_picture(sources[0], flat(2))
    os.utime(sources[0], (1e9, 1e9))
    assert counts(job()) == (1, 0, PICTURES - 1)
    assert masks_in(store)["/shared/masks/0.png"] != before["/shared/masks/0.png"]
    assert counts(job()) == (0, 0, PICTURES)


def test_a_plan_of_an_older_version_goes_by_the_times(job: Job, store: Any, tmp_path: Path) -> None:
    sources = write_flat(tmp_path / "in", 1)
    job()
    path = "/shared/masks/.unetrt/plan.json.gz"
    plan = json.loads(gzip.decompress(store.cat_file(path)))
    old = {name: plan[name] for name in ("images", "others", "failed")}
    store.pipe(path, gzip.compress(json.dumps(old).encode()))
    later = time.time() + 5  # a file system's clock goes in ticks of some milliseconds
    os.utime(sources[0], (later, later))
    assert counts(job()) == (1, 0, PICTURES - 1)
    assert merge_journals([OUT]).complete


def test_an_image_that_nobody_can_ask_for_is_not_done(
    job: Job, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = write_flat(tmp_path / "in", 1)
    job()
    real = Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if path == sources[0]:
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", refused)
    before = masks_in(store)
    assert counts(job()) == (0, 1, PICTURES - 1)
    assert masks_in(store) == before, "nobody can say that the image has changed"


def test_plans_of_several_lists_are_not_complete(job: Job, store: Any, tmp_path: Path) -> None:
    write_flat(tmp_path / "in", 1)
    job(shard=Shard(1, 2))
    write_flat(tmp_path / "in" / "later", 1)
    job(shard=Shard(2, 2))
    merged = merge_journals([OUT])
    assert [found["images"] for found in merged.lists] == [PICTURES, 2 * PICTURES]
    assert not merged.complete
    job(shard=Shard(1, 2))
    merged = merge_journals([OUT])
    assert (merged.done, merged.lists, merged.complete) == (2 * PICTURES, [], True)
