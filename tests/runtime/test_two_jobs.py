"""Several jobs and one output folder: nothing of one is lost, replaced or mixed by another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, stopping_after, write_picture
from tests.runtime.test_journal import MODEL, counts, flat
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.runtime.digest import digest_if_there, require_unchanged
from unetrt.runtime.journal import FOLDER, JournalOptions
from unetrt.runtime.lines import JsonLines
from unetrt.runtime.merge import merge_journals
from unetrt.runtime.ownership import recorded_outputs
from unetrt.runtime.plan import Task, plan_tasks, tasks_of_shard
from unetrt.runtime.predict import (
    Look,
    OneEngine,
    PredictOptions,
    Summary,
    predict_masks,
    run_job,
)
from unetrt.runtime.shards import Shard
from unetrt.runtime.work import Outcome

Job = Callable[..., Summary]
OTHER = "o" * 64


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Run the job of tmp_path/in → tmp_path/out as the command line plans it."""
    out = tmp_path / "out"

    def run(
        model: str = MODEL,
        shard: Shard | None = None,
        restart: bool = False,
        stop_after: int = 0,
        save: bool = True,
        **options: Any,
    ) -> Summary:
        look, stop = stopping_after(stop_after)
        recorded = None if restart else recorded_outputs(out)
        tasks = plan_tasks([str(tmp_path / "in")], output_dir=out, recorded=recorded, save=save)
        tasks = tasks if shard is None else tasks_of_shard(tasks, shard, out)
        journal = JournalOptions(output_dir=out, model=model, shard=shard, restart=restart)
        with ThresholdEngine(slots=1) as engine:
            return predict_masks(
                engine, tasks, PredictOptions(journal=journal, **options), look, stop
            )

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(12):
        write_picture(tmp_path / "in" / f"{index}.png", flat(index))
    return tmp_path / "in"


def journals(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out" / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, Shard(1, 2)),
        (Shard(1, 2), None),
        (Shard(1, 2), Shard(2, 2)),
        (Shard(1, 2), Shard(1, 3)),
    ],
    ids=str,
)
def test_two_models_do_not_mix_whatever_their_shards(
    first: Shard | None, second: Shard | None, job: Job, pictures: Path, tmp_path: Path
) -> None:
    job(shard=first)
    with pytest.raises(UserError, match="masks of another job") as caught:
        job(OTHER, second)
    assert "model" in str(caught.value.seen)
    assert "--restart" in str(caught.value.hint)


def test_a_restart_forgets_what_others_have_done(job: Job, pictures: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        job(shard=Shard(index, 2))
    assert counts(job(OTHER, restart=True)) == (12, 0, 0)
    assert journals(tmp_path) == ["journal.jsonl"]
    job(MODEL, Shard(1, 2), restart=True)
    assert journals(tmp_path) == ["journal-1-of-2.jsonl"], "the whole job was another model's"
    job(MODEL, Shard(2, 2), restart=True)
    assert journals(tmp_path) == ["journal-1-of-2.jsonl", "journal-2-of-2.jsonl"]


def test_shards_that_are_all_started_again_do_not_wait_for_each_other(
    job: Job, pictures: Path, tmp_path: Path
) -> None:
    """Another one holds its journal, and its old first line, until it is at its own restart."""
    for index in (1, 2):
        job(shard=Shard(index, 2))
    second = JsonLines(tmp_path / "out" / FOLDER / Shard(2, 2).journal)
    assert job(OTHER, Shard(1, 2), restart=True, stop_after=1).done
    assert job(OTHER, Shard(1, 2)).done, "it goes on, whatever the other one has"
    second.close()
    with pytest.raises(UserError, match="masks of another job"):
        job(OTHER, Shard(2, 2))
    assert job(OTHER, Shard(2, 2), restart=True).done
    assert merge_journals([tmp_path / "out"]).done == 12


def test_a_damaged_journal_of_another_shard_goes_with_a_restart(
    job: Job, pictures: Path, tmp_path: Path
) -> None:
    job(shard=Shard(1, 3))
    damaged = tmp_path / "out" / FOLDER / Shard(1, 3).journal
    damaged.write_bytes(b"{no line of ours}\n")
    with pytest.raises(UserError, match="is damaged"):
        job()
    assert counts(job(restart=True)) == (12, 0, 0)
    assert not damaged.exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_whole_job_waits_for_the_shards_and_they_for_it(
    restart: bool, job: Job, pictures: Path, tmp_path: Path
) -> None:
    met: list[Shard | None] = []

    def refused(others: list[Shard | None]) -> Look:
        def look(task: Task, mask: U8) -> None:
            for other in others:
                with pytest.raises(UserError, match="another job writes below"):
                    job(shard=other, restart=restart)
                met.append(other)

        return look

    tasks = plan_tasks([str(pictures)], output_dir=tmp_path / "out")[:1]
    for running, others in ((Shard(1, 2), [None, Shard(2, 3)]), (None, [Shard(1, 2)])):
        journal = JournalOptions(output_dir=tmp_path / "out", model=MODEL, shard=running)
        with ThresholdEngine() as engine:
            predict_masks(engine, tasks, PredictOptions(journal=journal), refused(others))
    assert met == [None, Shard(2, 3), Shard(1, 2)]


def test_what_a_job_below_is_writing_stays(job: Job, pictures: Path, tmp_path: Path) -> None:
    writing = tmp_path / "out" / "camera 1" / ".0a1b2c3d4e5f6071.77-00ff00ff.tmp"
    writing.parent.mkdir(parents=True)
    writing.write_text("half")
    assert counts(job()) == (12, 0, 0)
    assert writing.exists()


def test_the_users_own_masks_json_is_kept(job: Job, pictures: Path, tmp_path: Path) -> None:
    own = tmp_path / "out" / "masks.json"
    own.parent.mkdir()
    own.write_text("annotations")
    with pytest.raises(UserError, match="no job of unetrt has written"):
        job(format="rle", save=False)
    assert own.read_text() == "annotations"
    assert counts(job(format="rle", save=False, restart=True)) == (12, 0, 0)
    assert own.read_text() != "annotations"
    assert counts(job(format="rle", save=False)) == (0, 0, 12)


def test_a_mask_of_before_a_restart_goes_when_its_image_fails(
    job: Job, pictures: Path, tmp_path: Path
) -> None:
    """The restart was interrupted, and the command that goes on meets the image."""
    job()
    mask = tmp_path / "out" / "9.png"
    (pictures / "9.png").write_bytes(b"no image any more")
    first = job(OTHER, restart=True, stop_after=1)
    assert first.left
    assert mask.exists(), "not reached"
    assert first.done + job(OTHER).done == 11
    assert not mask.exists()


def test_an_image_that_goes_leaves_its_twin_its_name(job: Job, tmp_path: Path) -> None:
    for name in ("a.bmp", "a.png"):
        write_picture(tmp_path / "in" / name, flat(1))
    job()
    (tmp_path / "in" / "a.bmp").unlink()
    assert counts(job()) == (0, 0, 1)


def test_one_image_that_is_left_is_inferred_as_it_was_in_the_whole(
    tmp_path: Path, pictures: Path
) -> None:
    """A network that is faster in batches gives another mask in a batch of another size."""
    batches: list[int | None] = []

    class Noted(OneEngine):
        def write_masks(
            self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
        ) -> Iterator[Outcome]:
            batches.append(options.pipeline.batch)
            return super().write_masks(tasks, options, stop)

    options = PredictOptions(journal=JournalOptions(output_dir=tmp_path / "out", model=MODEL))
    tasks = plan_tasks([str(pictures)], output_dir=tmp_path / "out")
    with ThresholdEngine(batch=4) as engine:
        for done in (12, 1):
            summary = run_job(Noted(engine, None), tasks, options, threading.Event())
            assert summary.done == done
            (tmp_path / "out" / "3.png").unlink()
        run_job(Noted(engine, None), tasks[:1], PredictOptions(), threading.Event())
    assert batches == [None, None, 1]


def test_a_model_that_changes_while_it_is_opened_is_noticed(tmp_path: Path) -> None:
    model = tmp_path / "m.pth"
    assert digest_if_there(model) == ""
    model.write_bytes(np.arange(9).tobytes())
    digest = digest_if_there(model)
    require_unchanged(model, digest)
    model.write_bytes(b"the next epoch")
    with pytest.raises(UserError, match="has changed while it was opened"):
        require_unchanged(model, digest)
