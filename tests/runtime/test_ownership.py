"""What a job may replace and remove: what a job has written, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_journal import MODEL, counts, flat
from tests.runtime.test_predict import files_below
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.runtime.journal import FOLDER, JournalOptions
from unetrt.runtime.merge import merge_journals
from unetrt.runtime.ownership import recorded_outputs
from unetrt.runtime.plan import Task, plan_tasks, tasks_of_shard
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard

Job = Callable[..., Summary]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Run the job of tmp_path/in → tmp_path/out once more, as the command line plans it."""
    out = tmp_path / "out"

    def run(
        restart: bool = False,
        overlay: Path | None = None,
        shard: Shard | None = None,
        look: Any = None,
        folder: Path = out,
        **options: Any,
    ) -> Summary:
        tasks = plan_tasks(
            [str(tmp_path / "in")],
            output_dir=folder,
            overlay_dir=overlay,
            recorded=None if restart else recorded_outputs(folder),
        )
        tasks = tasks if shard is None else tasks_of_shard(tasks, shard, folder)
        journal = JournalOptions(
            output_dir=folder, model=MODEL, restart=restart, shard=shard, overlay_dir=overlay
        )
        with ThresholdEngine() as engine:
            return predict_masks(engine, tasks, PredictOptions(journal=journal, **options), look)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """One good picture, one bad one."""
    good = write_picture(tmp_path / "in" / "x.png", flat(1))
    bad = tmp_path / "in" / "bad.png"
    bad.write_bytes(b"no image")
    return [good, bad]


def test_files_of_others_are_neither_replaced_nor_removed(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    """As a folder of true masks that is given as the output folder by mistake."""
    truth = {name: write_picture(tmp_path / "out" / name, flat(9)) for name in ("x.png", "bad.png")}
    before = {name: path.read_bytes() for name, path in truth.items()}
    for _ in range(2):
        with pytest.raises(UserError, match="no job of unetrt has written") as caught:
            job()
        assert str(truth["bad.png"]) in str(caught.value.seen)
        assert "--restart" in str(caught.value.hint)
        assert files_below(tmp_path / "out") == ["bad.png", "x.png"], "not even a journal is made"
    assert {name: path.read_bytes() for name, path in truth.items()} == before
    assert counts(job(restart=True)) == (1, 1, 0)
    assert truth["x.png"].read_bytes() != before["x.png"]
    assert truth["bad.png"].read_bytes() == before["bad.png"], "it is the mask of no job"
    assert counts(job()) == (0, 1, 1)


def test_many_foreign_files_are_named_in_part(job: Job, tmp_path: Path) -> None:
    for index in range(9):
        write_picture(tmp_path / "in" / f"{index}.png", flat(index))
        write_picture(tmp_path / "out" / f"{index}.png", flat(index))
    with pytest.raises(UserError) as caught:
        job()
    assert str(caught.value.seen).endswith("out/2.png and 6 more")


def test_a_foreign_overlay_is_not_replaced(job: Job, pictures: list[Path], tmp_path: Path) -> None:
    photo = tmp_path / "look" / "x.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo")
    with pytest.raises(UserError, match="no job of unetrt"):
        job(overlay=tmp_path / "look")
    assert photo.read_bytes() == b"a photo"


def test_what_lies_where_a_later_image_has_its_mask_is_not_replaced(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    """A job that goes on is the first one of the images that have come since."""
    job()
    write_picture(tmp_path / "in" / "later.png", flat(2))
    foreign = tmp_path / "out" / "later.png"
    foreign.write_bytes(b"precious")
    for _ in range(2):  # a run that is refused has planned nothing
        with pytest.raises(UserError, match="no job of unetrt"):
            job()
    assert foreign.read_bytes() == b"precious"
    foreign.unlink()
    assert counts(job()) == (1, 1, 1)
    assert counts(job(restart=True)) == (2, 1, 0)


def test_a_mask_whose_line_a_kill_has_cost_is_of_the_job(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    """It was planned: the mask may lie there without a line that says so."""
    job()
    journal = tmp_path / "out" / FOLDER / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"done"' not in line]
    assert len(kept) == len(lines) - 1
    journal.write_text("".join(kept))
    assert counts(job()) == (1, 1, 0)


def test_overlays_that_are_asked_for_later_replace_no_photograph(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    """Nor does one pass for the overlay of an image that is done."""
    job()
    photo = tmp_path / "look" / "x.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo")
    for _ in range(2):
        with pytest.raises(UserError, match="no job of unetrt"):
            job(overlay=tmp_path / "look")
    photo.unlink()
    assert counts(job(overlay=tmp_path / "look")) == (1, 1, 0)
    assert photo.read_bytes()[:2] == b"\xff\xd8"
    assert counts(job(overlay=tmp_path / "look")) == (0, 1, 1)
    assert counts(job()) == (0, 1, 1)


def test_what_other_jobs_have_written_below_the_images_is_no_image(
    job: Job, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks in one folder below them, then in another, with overlays; pictures there stay."""
    folder = tmp_path / "in"
    write_picture(folder / "sub" / "y.png", flat(3))
    job(folder=folder / "masks", overlay=folder / "look")
    write_picture(folder / "masks" / "own.png", flat(4))
    assert (folder / "look" / "sub" / "y.jpg").exists()
    assert counts(job(folder=folder / "again")) == (3, 1, 0)
    assert sorted(p.name for p in (folder / "again").rglob("*.png")) == [
        "own.png",
        "x.png",
        "y.png",
    ]
    assert any("no images: 4" in record.message for record in caplog.records)
    tasks = plan_tasks([str(folder / "masks")], save=False)
    assert {t.source.name for t in tasks} == {"own.png", "x.png", "y.png"}, "it is asked for itself"
    for pattern in ("**/*.*", "*/*.*"):
        found = plan_tasks([str(folder / pattern)], save=False)
        assert not [t for t in found if t.source.name == "x.jpg" or t.source.parent.name == "again"]


def test_the_mask_of_a_failed_image_is_removed_where_a_job_made_it(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    good, _ = pictures
    mask = tmp_path / "out" / "x.png"
    job()
    assert mask.exists()
    good.write_bytes(b"no image any more")
    assert counts(job()) == (0, 2, 0)
    assert not mask.exists()
    write_picture(good, flat(1))
    job()
    good.write_bytes(b"nor now")
    assert counts(job(restart=True)) == (0, 2, 0)
    assert not mask.exists(), "that it was a job's is known from the journal of before"


def test_other_shards_of_a_job_are_no_strangers(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    for index in range(12):
        write_picture(tmp_path / "in" / f"{index}.png", flat(index))
    assert job(shard=Shard(1, 2)).done + job(shard=Shard(2, 2)).done == 13
    assert job().done == 13, "the journal of the whole job is another one"
    assert job(shard=Shard(2, 3)).failed <= 1


@pytest.mark.parametrize("gone", ["out", "out/.unetrt", "out/.unetrt/journal.jsonl", "out/sub"])
@pytest.mark.parametrize("at", [2, 12])
def test_an_output_folder_that_goes_while_the_job_runs_is_no_success(
    gone: str, at: int, job: Job, tmp_path: Path
) -> None:
    """Also after the last mask: what was counted is not there."""
    for index in range(12):
        write_picture(tmp_path / "in" / "sub" / f"{index}.png", flat(index))
    seen = 0

    def look(task: Task, mask: U8) -> None:
        nonlocal seen
        seen += 1
        path = tmp_path / gone
        if seen == at:
            path.rename(tmp_path / "gone")  # as rm -rf, which may meet a file that comes late

    with pytest.raises(UserError, match=r"cannot write|cannot find") as caught:
        job(look=look)
    assert "run" in str(caught.value.hint)
    if gone == "out":
        assert counts(job()) == (12, 0, 0)


def test_a_mask_without_a_byte_is_not_done(job: Job, pictures: list[Path], tmp_path: Path) -> None:
    job()
    mask = tmp_path / "out" / "x.png"
    whole = mask.read_bytes()
    mask.write_bytes(b"")
    merged = merge_journals([tmp_path / "out"])
    assert (merged.done, merged.skipped) == (0, 1)
    assert counts(job()) == (1, 1, 0)
    assert mask.read_bytes() == whole


def test_a_new_image_takes_no_name_of_one_that_is_done(job: Job, tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.tif", flat(1))
    job(overlay=tmp_path / "look")
    first = (tmp_path / "out" / "a.png").read_bytes()
    write_picture(tmp_path / "in" / "a.bmp", flat(2))
    write_picture(tmp_path / "in" / "a.png", flat(1))
    assert counts(job(overlay=tmp_path / "look")) == (2, 0, 1)
    assert (tmp_path / "out" / "a.png").read_bytes() == first
    assert files_below(tmp_path / "out")[1:] == ["a.bmp.png", "a.png", "a.png.png"]
    assert files_below(tmp_path / "look") == ["a.bmp.jpg", "a.jpg", "a.png.jpg"]
    assert counts(job(overlay=tmp_path / "look")) == (0, 0, 3)


def test_names_in_a_journal_that_do_not_fit_are_passed_over(job: Job, tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.tif", flat(1))
    write_picture(tmp_path / "in" / "a.bmp", flat(2))
    sources = [str(tmp_path / "in" / name) for name in ("a.bmp", "a.tif")]
    for recorded in (
        dict.fromkeys(sources, "a.png"),
        dict.fromkeys(sources, "b.png"),
        dict.fromkeys(sources, ""),
    ):
        tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out", recorded=recorded)
        assert [task.output for task in tasks] == [
            tmp_path / "out" / "a.png",
            tmp_path / "out" / "a.tif.png",
        ]


def test_a_store_too_keeps_what_is_not_ours(job: Job, pictures: list[Path]) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    out = path_from_text("memory://kept/out")
    store.pipe("/kept/out/x.png", b"the truth")
    store.pipe("/kept/out/bad.png", b"the truth")
    for _ in range(2):
        with pytest.raises(UserError, match="no job of unetrt"):
            job(folder=out)
    assert sorted(store.find("/kept")) == ["/kept/out/bad.png", "/kept/out/x.png"]
    assert counts(job(folder=out, restart=True)) == (1, 1, 0)
    assert store.cat_file("/kept/out/bad.png") == b"the truth"
    store.pipe("/kept/out/x.png", b"")
    assert counts(job(folder=out))[0] == 1, "an empty file is no mask"
    store.store.clear()


def test_a_journal_is_not_written_through_a_link_out_of_the_folder(
    job: Job, pictures: list[Path], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FOLDER).symlink_to(victim)
    with pytest.raises(UserError, match="a link leads out"):
        job()
    assert list(victim.iterdir()) == []


def test_an_output_whose_name_cannot_be_costs_that_image_alone(tmp_path: Path) -> None:
    good, long, folder = (
        write_picture(tmp_path / "in" / f"{name}.png", np.full((4, 6, 1), 1, np.uint8))
        for name in ("a", "b", "c")
    )
    (tmp_path / "out" / "c.png" / "inside").mkdir(parents=True)
    fits, too_long, deep = "x" * 251 + ".png", "x" * 256 + ".png", "y" * 300 + "/z.png"
    tasks = [
        Task(good, tmp_path / "out" / fits),
        Task(long, tmp_path / "out" / too_long),
        Task(long, tmp_path / "out" / deep),
        Task(folder, tmp_path / "out" / "c.png"),
    ]
    journal = JournalOptions(output_dir=tmp_path / "out", model=MODEL)
    with ThresholdEngine() as engine:
        summary = predict_masks(engine, tasks, PredictOptions(journal=journal))
    assert counts(summary) == (1, 3, 0)
    reasons = " ".join(failure["reason"] for failure in summary.failures)
    assert reasons.count("File name too long") == 2
    assert "Is a directory" in reasons
    assert files_below(tmp_path / "out")[1:] == [fits]
