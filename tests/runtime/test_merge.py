"""Merging journals: what all shards have done, what is missing, and what was not one job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.shard_jobs import Job, job_of, masks_below, tasks_of
from tests.runtime.test_journal import counts
from tests.runtime.test_predict import write_pictures
from unetrt.contract.errors import UserError
from unetrt.runtime.journal import FOLDER
from unetrt.runtime.merge import Merged, merge_journals
from unetrt.runtime.shards import Shard


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_of(tmp_path)


def test_merge_says_what_failed_is_missing_or_has_not_begun(job: Job, tmp_path: Path) -> None:
    sources = write_pictures(tmp_path / "in", 24)
    held = {index: tasks_of(tmp_path, Shard(index, 3)) for index in (1, 2, 3)}
    broken = held[1][0].source
    broken.write_bytes(b"no image")
    job(Shard(1, 3))
    stopped = job(Shard(2, 3), stop_after=2)
    assert stopped.left > 0
    gone = held[1][1].output
    assert gone is not None
    gone.unlink()
    merged = merge_journals([tmp_path / "out"])
    assert merged.planned == len(held[1]) + len(held[2]) < len(sources)
    assert merged.planned == merged.done + merged.failed + merged.skipped
    assert (merged.failed, merged.skipped) == (1, 1 + stopped.left)
    assert merged.failures[0]["input"] == str(broken)
    assert merged.failures[0]["reason"]
    assert merged.missing_shards == ["3/3"]
    assert str(held[1][1].source) in merged.missing_images
    done = set(masks_below(tmp_path / "out"))
    missing = {str(Path(name).relative_to(tmp_path / "in")) for name in merged.missing_images}
    assert missing == {str(t.source.relative_to(tmp_path / "in")) for t in held[1] + held[2]} - (
        done | {str(broken.relative_to(tmp_path / "in"))}
    )
    assert not merged.complete
    write_pictures(tmp_path / "in", 24)
    for index in (1, 2, 3):
        job(Shard(index, 3))
    assert merge_journals([tmp_path / "out"]) == Merged(planned=24, done=24)


def test_shards_may_write_into_folders_of_their_own(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 9)
    job(Shard(1, 2), out="one")
    job(Shard(2, 2), out="two")
    merged = merge_journals([tmp_path / "one", tmp_path / "two"])
    assert merged == Merged(planned=9, done=9)
    assert merge_journals([tmp_path / "two"]).missing_shards == ["1/2"]


def test_the_last_plan_of_a_shard_counts(job: Job, tmp_path: Path) -> None:
    sources = write_pictures(tmp_path / "in", 6)
    job(Shard(1, 1))
    path = tmp_path / "out" / FOLDER / "journal-1-of-1.jsonl"
    before = path.read_bytes()
    job(Shard(1, 1))
    assert path.read_bytes() == before, "the same plan is not written again"
    sources[0].unlink()
    write_pictures(tmp_path / "in" / "new", 2)
    assert counts(job(Shard(1, 1)))[0] == 2
    assert merge_journals([tmp_path / "out"]) == Merged(planned=7, done=7)


def test_a_long_plan_takes_several_lines_and_half_a_plan_is_none(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetrt.runtime import journal

    monkeypatch.setattr(journal, "_LINE", 3)
    write_pictures(tmp_path / "in", 8)
    job(Shard(1, 1))
    path = tmp_path / "out" / FOLDER / "journal-1-of-1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    plans = [json.loads(line) for line in lines[1:4]]
    assert [(plan["from"], len(plan["planned"]), plan["of"]) for plan in plans] == [
        (0, 3, 8),
        (3, 3, 8),
        (6, 2, 8),
    ]
    assert merge_journals([tmp_path / "out"]).complete
    path.write_text("".join(lines[:3]) + lines[3][:20])  # as a kill leaves it
    assert merge_journals([tmp_path / "out"]) == Merged(missing_shards=["1/1"])
    assert counts(job(Shard(1, 1)))[0] == 8
    assert merge_journals([tmp_path / "out"]) == Merged(planned=8, done=8)


def test_a_shard_without_images_has_run(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    summaries = [job(Shard(index, 3)) for index in (1, 2, 3)]
    assert sorted(counts(summary) for summary in summaries) == [(0, 0, 0), (0, 0, 0), (1, 0, 0)]
    assert merge_journals([tmp_path / "out"]) == Merged(planned=1, done=1)


def test_a_job_without_shards_is_merged_by_its_images(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 5)
    job(None)
    assert merge_journals([tmp_path / "out"]) == Merged(planned=5, done=5)


def test_a_job_without_shards_that_was_ended_is_not_complete(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 20)
    assert job(None, stop_after=1).left > 0
    merged = merge_journals([tmp_path / "out"])
    assert merged.planned == merged.done + merged.skipped == 20
    assert merged.skipped == len(merged.missing_images) > 0
    assert not merged.complete
    job(None)
    assert merge_journals([tmp_path / "out"]) == Merged(planned=20, done=20)


def test_a_journal_of_an_older_version_does_not_say_what_was_planned(
    job: Job, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "in", 5)
    job(None)
    path = tmp_path / "out" / FOLDER / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "planned" not in line))
    merged = merge_journals([tmp_path / "out"])
    assert merged == Merged(planned=5, done=5, unplanned=[str(path)])
    assert not merged.complete
    assert "run the same job again" in merged.text
    assert counts(job(None)) == (0, 0, 5)
    assert merge_journals([tmp_path / "out"]).complete


def test_a_folder_that_grows_names_each_image_once(job: Job, tmp_path: Path) -> None:
    """As a camera fills it, and a timer runs the same command."""
    for day in range(4):
        write_pictures(tmp_path / "in" / str(day), 3)
        assert counts(job(None)) == (3, 0, 3 * day)
    lines = (tmp_path / "out" / FOLDER / "journal.jsonl").read_text().splitlines()
    plans = [json.loads(line)["planned"] for line in lines if "planned" in line]
    assert [len(plan) for plan in plans] == [3, 3, 3, 3]
    assert merge_journals([tmp_path / "out"]) == Merged(planned=12, done=12)


def test_a_job_that_was_given_other_images_is_merged_with_all_of_them(
    job: Job, tmp_path: Path
) -> None:
    sources = write_pictures(tmp_path / "in", 4)
    sources[0].write_text("no image")
    job(None)
    for source in sources:
        source.unlink()
    write_pictures(tmp_path / "in" / "new", 2)
    job(None)
    merged = merge_journals([tmp_path / "out"])
    assert (merged.planned, merged.done, merged.failed) == (6, 5, 1)


def test_one_shard_of_one_beside_the_whole_job(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 20)
    assert job(None, stop_after=1).left > 0
    job(Shard(1, 1))
    assert merge_journals([tmp_path / "out"]) == Merged(planned=20, done=20)
    job(None)
    assert merge_journals([tmp_path / "out"]) == Merged(planned=20, done=20)


def test_what_is_not_one_job_is_refused(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 6)
    with pytest.raises(UserError, match="no journal below"):
        merge_journals([tmp_path / "out"])
    job(Shard(1, 2))
    job(Shard(1, 2), out="again")
    job(Shard(2, 2), out="model", model="n" * 64)
    job(Shard(1, 4), out="four")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="shard 1/2 has run into two folders"):
        merge_journals([out, tmp_path / "again"])
    with pytest.raises(UserError, match="another job") as caught:
        merge_journals([out, tmp_path / "model"])
    assert "model" in str(caught.value.seen)
    with pytest.raises(UserError, match="another number of shards"):
        merge_journals([out, tmp_path / "four"])


def test_a_journal_that_grows_is_read_without_its_last_half_line(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 4)
    job(Shard(1, 1))
    path = tmp_path / "out" / FOLDER / "journal-1-of-1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    merged = merge_journals([tmp_path / "out"])
    assert (merged.done, merged.skipped) == (3, 1)
    assert path.read_bytes() == whole[:-10], "looked at, not touched"
    assert replace(merged, done=4, skipped=0, missing_images=[]) == Merged(planned=4, done=4)


def test_shards_of_a_list_that_has_grown_meanwhile_are_not_complete(
    job: Job, tmp_path: Path
) -> None:
    """Where an image that came between two shards belongs to the first, nobody was given it."""
    write_pictures(tmp_path / "in", 6)
    job(Shard(1, 2))
    write_pictures(tmp_path / "in" / "new", 6)
    job(Shard(2, 2))
    merged = merge_journals([tmp_path / "out"])
    assert merged.planned == merged.done < 12
    assert merged.lists == [
        {"images": 6, "shards": ["1/2"]},
        {"images": 12, "shards": ["2/2"]},
    ]
    assert not merged.complete
    job(Shard(1, 2))
    assert merge_journals([tmp_path / "out"]) == Merged(planned=12, done=12)


def test_a_list_that_has_grown_by_nothing_of_this_shard_is_another_one(
    job: Job, tmp_path: Path
) -> None:
    sources = write_pictures(tmp_path / "in", 12)
    for index in (1, 2):
        job(Shard(index, 2))
    other = tasks_of(tmp_path, Shard(2, 2))[0].source
    assert other in sources
    other.unlink()
    job(Shard(2, 2))
    assert not merge_journals([tmp_path / "out"]).complete
    mine = len(tasks_of(tmp_path, Shard(1, 2)))
    assert counts(job(Shard(1, 2))) == (0, 0, mine)
    assert merge_journals([tmp_path / "out"]) == Merged(planned=11, done=11)


def test_an_image_that_two_shards_were_given_is_said(job: Job, tmp_path: Path) -> None:
    """As when another list calls its mask otherwise, so that it moves to another shard."""
    write_pictures(tmp_path / "in", 12)
    for index in (1, 2):
        job(Shard(index, 2))
    paths = [tmp_path / "out" / FOLDER / f"journal-{index}-of-2.jsonl" for index in (1, 2)]
    lines = [path.read_text().splitlines() for path in paths]
    plan, other = (json.loads(line[1]) for line in lines)
    image = plan["planned"][0]
    other |= {"planned": [*other["planned"], image], "of": other["of"] + 1}
    paths[1].write_text("\n".join([lines[1][0], json.dumps(other), *lines[1][2:]]) + "\n")
    merged = merge_journals([tmp_path / "out"])
    assert merged.twice == [image]
    assert not merged.complete


def test_plans_of_an_older_version_name_no_list(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 8)
    for index in (1, 2):
        job(Shard(index, 2))
    path = tmp_path / "out" / FOLDER / "journal-1-of-2.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{name: value for name, value in e.items() if name != "list"} for e in entries]
    assert old != entries
    path.write_text("".join(json.dumps(entry) + "\n" for entry in old))
    assert merge_journals([tmp_path / "out"]) == Merged(planned=8, done=8)
    job(Shard(1, 2))
    assert '"list"' in path.read_text()
    assert merge_journals([tmp_path / "out"]) == Merged(planned=8, done=8)
