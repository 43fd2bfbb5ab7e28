"""Shards: every image in one of them, and nothing of another's touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.conftest import ThresholdEngine
from tests.runtime.shard_jobs import SERIAL, Job, job_of, masks_below, tasks_of
from tests.runtime.test_journal import MODEL, counts
from tests.runtime.test_predict import write_pictures
from unetrt.contract.errors import UserError
from unetrt.contract.files import temporary_key
from unetrt.contract.types import U8
from unetrt.runtime.journal import FOLDER, JournalOptions
from unetrt.runtime.merge import Merged, merge_journals
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard, list_mark, shard_from_journal


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_of(tmp_path)


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 9))
def test_every_name_is_in_one_shard_whatever_the_others_are(names: list[str], count: int) -> None:
    for name in names:
        assert sum(Shard(index, count).holds(name) for index in range(1, count + 1)) == 1


def test_a_shard_is_the_same_on_every_machine() -> None:
    """Two runs of one job array may have different versions of this."""
    held = [next(i for i in range(1, 5) if Shard(i, 4).holds(f"d/{n}.png")) for n in range(12)]
    assert held == [4, 4, 2, 2, 3, 4, 1, 4, 3, 3, 1, 3]
    sizes = [sum(Shard(i, 4).holds(f"{n:06}.png") for n in range(4000)) for i in range(1, 5)]
    assert all(850 < size < 1150 for size in sizes), "even enough"


def test_an_image_that_is_added_moves_no_other(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 12)
    before = set(tasks_of(tmp_path, Shard(2, 3)))
    write_pictures(tmp_path / "in" / "and more", 12)
    after = set(tasks_of(tmp_path, Shard(2, 3)))
    assert before < after


def test_journals_are_known_by_their_names() -> None:
    assert shard_from_journal(Shard(3, 12).journal) == Shard(3, 12)
    assert Shard(3, 12).journal == "journal-3-of-12.jsonl"
    assert shard_from_journal("journal.jsonl") == Shard(1, 1)
    assert shard_from_journal("journal-3-of-12.jsonl.bak") is None


def test_the_shards_together_are_the_whole_job(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 20)
    assert counts(job(None, out="whole")) == (20, 0, 0)
    summaries = [job(Shard(index, 3)) for index in (2, 3, 1)]
    assert sum(summary.done for summary in summaries) == 20
    assert all(0 < summary.done < 20 for summary in summaries)
    assert masks_below(tmp_path / "out") == masks_below(tmp_path / "whole")
    journals = sorted(path.name for path in (tmp_path / "out" / FOLDER).iterdir())
    assert journals == [f"journal-{index}-of-3.jsonl" for index in (1, 2, 3)]
    headers = {(tmp_path / "out" / FOLDER / name).read_text().splitlines()[0] for name in journals}
    assert len(headers) == 1, "the shard is not part of what must match"
    assert counts(job(Shard(2, 3))) == (0, 0, summaries[0].done)


def test_two_shards_at_once_in_one_folder(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 20)
    job(None, out="whole")
    summaries: list[Summary] = []
    threads = [
        threading.Thread(target=lambda i=i: summaries.append(job(Shard(i, 4))))  # type: ignore[misc]
        for i in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(summary.done for summary in summaries) == 20
    assert masks_below(tmp_path / "out") == masks_below(tmp_path / "whole")
    assert merge_journals([tmp_path / "out"]) == Merged(planned=20, done=20)


def test_one_shard_twice_at_once_is_refused(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    caught: list[UserError] = []

    def again() -> None:
        try:
            job(Shard(1, 1))
        except UserError as error:
            caught.append(error)

    def look(task: Task, mask: U8) -> None:
        thread = threading.Thread(target=again)
        thread.start()
        thread.join()

    options = JournalOptions(output_dir=tmp_path / "out", model=MODEL, shard=Shard(1, 1))
    with ThresholdEngine() as engine:
        tasks = tasks_of(tmp_path)
        predict_masks(engine, tasks, PredictOptions(journal=options, pipeline=SERIAL), look)
    assert len(caught) == 2
    assert "another job writes" in str(caught[0])


@pytest.mark.parametrize("named", [temporary_key, str])
def test_what_other_shards_are_writing_stays(
    named: Callable[[str], str], job: Job, tmp_path: Path
) -> None:
    """Older versions had the whole name of the mask in that of the temporary."""
    write_pictures(tmp_path / "in", 8)
    job(Shard(1, 2), stop_after=1)

    def temporaries(shard: Shard) -> list[Path]:
        outputs = [task.output for task in tasks_of(tmp_path, shard)]
        return [path.with_name(f".{named(path.name)}.77-00ff00ff.tmp") for path in outputs if path]

    own, others = temporaries(Shard(1, 2)), temporaries(Shard(2, 2))
    for path in own + others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    foreign = tmp_path / "out" / ".of-nobody.png.77-00ff00ff.tmp"
    foreign.write_text("half")
    job(Shard(1, 2))
    left = {path for path in own if path.exists()}
    assert len(left) <= 2, "but of what was done before"
    assert foreign.exists()
    assert all(path.exists() for path in others)
    job(Shard(2, 2))
    assert not any(path.exists() for path in others)


def test_rle_is_no_work_for_a_shard(job: Job, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    with pytest.raises(UserError, match="one file for the whole job"):
        job(Shard(1, 2), format="rle")
    assert not (tmp_path / "out").exists()


def test_a_list_is_known_in_whatever_order() -> None:
    assert list_mark(["a", "b"]) == list_mark(["b", "a"])
    assert list_mark(["a", "b"]) != list_mark(["a", "c"])
    assert list_mark(["ab", "c"]) != list_mark(["a", "bc"])
