"""The journal: what is in it is done, whatever ended the job; what does not match is refused."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_predict import files_below, write_pictures
from unetrt.contract import progress
from unetrt.contract.errors import UserError
from unetrt.contract.types import U8
from unetrt.runtime import journal as journal_module
from unetrt.runtime.digest import digest_from_model
from unetrt.runtime.inputs import real_folder
from unetrt.runtime.journal import (
    FOLDER,
    NAME,
    Journal,
    JournalOptions,
)
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.temporaries import remove_temporaries_of

MODEL = "m" * 64


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Summary]:
    """Run the job of tmp_path/in → tmp_path/out once more."""

    def run(restart: bool = False, model: str = MODEL, **options: object) -> Summary:
        out = tmp_path / "out"
        tasks = plan_tasks([str(tmp_path / "in")], output_dir=out)
        journal = JournalOptions(output_dir=out, model=model, restart=restart)
        with ThresholdEngine() as engine:
            return predict_masks(engine, tasks, PredictOptions(journal=journal, **options))  # type: ignore[arg-type]

    return run


def flat(value: int) -> U8:
    return np.full((4, 6, 1), value, np.uint8)


def counts(summary: Summary) -> tuple[int, int, int]:
    assert summary.planned == summary.done + summary.failed + summary.skipped
    return summary.done, summary.failed, summary.skipped


def lines(tmp_path: Path) -> list[dict[str, object]]:
    """Without the plan."""
    text = (tmp_path / "out" / FOLDER / NAME).read_text()
    assert text.endswith("\n")
    return [entry for entry in map(json.loads, text.splitlines()) if "planned" not in entry]


def test_a_finished_job_has_nothing_left_to_do(job: Callable[..., Summary], tmp_path: Path) -> None:
    sources = write_pictures(tmp_path / "in", 5)
    assert counts(job()) == (5, 0, 0)
    masks = files_below(tmp_path / "out")
    times = [(tmp_path / "out" / name).stat().st_mtime_ns for name in masks[1:]]
    assert counts(job()) == (0, 0, 5)
    assert times == [(tmp_path / "out" / name).stat().st_mtime_ns for name in masks[1:]]
    header, *images = lines(tmp_path)
    assert header["model"] == MODEL
    assert header["format"] == "bilevel"
    assert header["spec"]["scale"] == 1.0  # type: ignore[index]
    assert sorted(str(entry["input"]) for entry in images) == sorted(map(str, sources))
    assert {entry["status"] for entry in images} == {"done"}
    assert {str(tmp_path / "out" / str(entry["output"])) for entry in images} == {
        str(tmp_path / "out" / name) for name in masks if not name.startswith(FOLDER)
    }


def test_what_is_new_failed_changed_or_without_its_mask_is_done_again(
    job: Callable[..., Summary], tmp_path: Path
) -> None:
    sources = write_pictures(tmp_path / "in", 6)
    whole = sources[1].read_bytes()
    sources[1].write_bytes(whole[:-40])
    assert counts(job()) == (5, 1, 0)
    assert [e["reason"] for e in lines(tmp_path) if e.get("status") == "failed"] != [""]
    assert counts(job()) == (0, 1, 5), "a failed image is tried again"
    sources[1].write_bytes(whole)
    assert counts(job()) == (1, 0, 5)
    write_pictures(tmp_path / "in", 7)  # six as they were but for their time, one new
    assert counts(job()) == (7, 0, 0)
    os.utime(sources[2])
    (tmp_path / "out" / "d1" / "steel 3.png").unlink()
    assert counts(job()) == (2, 0, 5)
    assert counts(job()) == (0, 0, 7)


def test_a_changed_image_that_fails_loses_its_old_mask(
    job: Callable[..., Summary], tmp_path: Path
) -> None:
    sources = write_pictures(tmp_path / "in", 2)
    assert counts(job()) == (2, 0, 0)
    sources[0].write_bytes(b"not an image any more")
    assert counts(job()) == (0, 1, 1)
    assert files_below(tmp_path / "out") == [f"{FOLDER}/{NAME}", "d1/steel 1.png"]


def test_the_mask_of_an_image_that_has_gone_is_kept(tmp_path: Path) -> None:
    (source,) = write_pictures(tmp_path / "in", 1)
    tasks = plan_tasks([str(source)], output_dir=tmp_path / "out")
    options = JournalOptions(output_dir=tmp_path / "out", model=MODEL)
    with ThresholdEngine() as engine:
        predict_masks(engine, tasks, PredictOptions(journal=options))
        source.unlink()
        again = predict_masks(engine, tasks, PredictOptions(journal=options))
        assert counts(again) == (0, 0, 1)
        restart = replace(options, restart=True)
        summary = predict_masks(engine, tasks, PredictOptions(journal=restart))
        assert counts(summary) == (0, 1, 0)
    assert (tmp_path / "out" / "steel 0.png").is_file(), "a disk that is not mounted costs no mask"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "n" * 64}, "model mmmmmmmmmmmm…"),
        ({"format": "index"}, 'format "bilevel"'),
        ({"bit_depth": 12}, "bit_depth null"),
    ],
)
def test_another_job_is_refused_until_it_restarts(
    changed: dict[str, object], told: str, job: Callable[..., Summary], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "in", 3)
    job()
    before = {
        name: (tmp_path / "out" / name).read_bytes() for name in files_below(tmp_path / "out")
    }
    with pytest.raises(UserError, match="another job") as caught:
        job(**changed)
    assert caught.value.seen == told
    assert "--restart" in str(caught.value.hint)
    after = {name: (tmp_path / "out" / name).read_bytes() for name in files_below(tmp_path / "out")}
    assert before == after
    assert counts(job(restart=True, **changed)) == (3, 0, 0)
    assert counts(job(**changed)) == (0, 0, 3)


@pytest.mark.parametrize("field", [{"scale": 0.5}, {"threshold": 0.4}, {"mask_values": (0, 9)}])
def test_another_spec_is_refused(
    field: dict[str, object], job: Callable[..., Summary], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "in", 1)
    job(format="index")
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out")
    options = JournalOptions(output_dir=tmp_path / "out", model=MODEL)
    with ThresholdEngine() as engine:
        engine.spec = replace(engine.spec, **field)  # type: ignore[arg-type]
        with pytest.raises(UserError) as caught:
            predict_masks(engine, tasks, PredictOptions(format="index", journal=options))
    assert str(caught.value.seen).startswith(next(iter(field)))


def test_a_mask_of_another_image_is_not_replaced(tmp_path: Path) -> None:
    """As two folders that hold the same names, sent to one."""
    one = write_picture(tmp_path / "one" / "a.png", flat(1))
    two = write_picture(tmp_path / "two" / "a.png", flat(2))
    out = tmp_path / "out"
    journal = JournalOptions(output_dir=out, model=MODEL)
    with ThresholdEngine() as engine:
        predict_masks(
            engine, plan_tasks([str(one)], output_dir=out), PredictOptions(journal=journal)
        )
        before = (out / "a.png").read_bytes()
        with pytest.raises(UserError, match="mask of another image") as caught:
            predict_masks(
                engine, plan_tasks([str(two)], output_dir=out), PredictOptions(journal=journal)
            )
    assert (caught.value.seen, caught.value.expected) == (str(one), str(two))
    assert (out / "a.png").read_bytes() == before


def test_the_working_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "in", 2)
    monkeypatch.chdir(tmp_path)
    journal = JournalOptions(output_dir=Path("out"), model=MODEL)
    with ThresholdEngine() as engine:
        tasks = plan_tasks(["in"], output_dir=Path("out"))
        assert counts(predict_masks(engine, tasks, PredictOptions(journal=journal))) == (2, 0, 0)
        monkeypatch.chdir(tmp_path / "in")
        tasks = plan_tasks(["."], output_dir=Path("../out"))
        journal = JournalOptions(output_dir=Path("../out"), model=MODEL)
        assert counts(predict_masks(engine, tasks, PredictOptions(journal=journal))) == (0, 0, 2)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 2000))
def test_a_journal_that_is_cut_anywhere_costs_work_only(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As a kill in the middle of a write leaves it."""
    root = tmp_path_factory.mktemp("cut")
    out, tasks = (
        root / "out",
        [Task(root / f"{i}.png", root / "out" / f"{i}.png") for i in range(6)],
    )
    for task in tasks:
        for path in [*task.files, task.source]:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
    with Journal(JournalOptions(output_dir=out, model=MODEL), {}) as journal:
        for task in tasks:
            journal.record(task, (1, task.source.stat().st_mtime_ns))
    path = out / FOLDER / NAME
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = max(0, data.count(b"\n") - 1)
    # Without its first line, which no mask is older than, only a failing disk can have spoilt it.
    lost = b"\n" not in data
    if lost:
        journal = Journal(JournalOptions(output_dir=out, model=MODEL), {})
        with journal, pytest.raises(UserError, match="no job of unetrt"):
            journal.remaining(tasks)
    with Journal(JournalOptions(output_dir=out, model=MODEL, restart=lost), {}) as journal:
        assert journal.remaining(tasks) == tasks[whole:]
        for task in journal.remaining(tasks):
            journal.record(task, (1, task.source.stat().st_mtime_ns))
        assert journal.remaining(tasks) == []
    entries = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    inputs = [entry["input"] for entry in entries if "planned" not in entry]
    assert inputs == [str(task.source) for task in tasks], "each once, in whole lines"


@pytest.mark.parametrize(
    "line",
    ["no json", "[1]", '{"status": "done"}', '{"input": "a", "output": 3, "status": "done"}'],
)
def test_a_damaged_journal_is_refused_until_it_restarts(
    line: str, job: Callable[..., Summary], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "in", 2)
    job()
    path = tmp_path / "out" / FOLDER / NAME
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *others]) + "\n")
    with pytest.raises(UserError, match="damaged") as caught:
        job()
    assert "line 2" in str(caught.value.seen)
    assert counts(job(restart=True)) == (2, 0, 0)


def test_one_job_at_a_time(tmp_path: Path) -> None:
    options = JournalOptions(output_dir=tmp_path, model=MODEL)
    with Journal(options, {}), pytest.raises(UserError, match="another job writes"):
        Journal(options, {})
    Journal(options, {}).close()


def test_what_a_killed_job_was_writing_is_removed_and_nothing_else(
    job: Callable[..., Summary], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "in", 2)
    out = tmp_path / "out"
    kept = [
        "d0/steel 0.png.12-0011aabb.tmp",
        "d0/.steel 0.png.12-0011AABB.tmp",
        "d0/.steel 1.png.12-0011aabb.tmp",  # what another job may be writing at this moment
        "z/.m.json.1-0a0a0a0a.tmp",
    ]
    stale = ["d0/.steel 0.png.99999-ffffffff.tmp"]
    for name in kept + stale:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("half")
    assert counts(job()) == (2, 0, 0)
    left = files_below(out)
    assert set(kept) <= set(left)
    assert not set(stale) & set(left)


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Microseconds: links are followed once a folder, and no line waits for the disk."""
    tasks = [Task(tmp_path / "in" / f"{i}.png", tmp_path / "sub" / f"{i}.png") for i in range(200)]
    followed: list[Path] = []

    def follow(folder: Path) -> Path:
        followed.append(folder)
        return real_folder(folder)

    monkeypatch.setattr(journal_module, "real_folder", follow)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a line waits for the disk"))
    sizes = []
    with Journal(JournalOptions(output_dir=tmp_path, model=MODEL), {}) as journal:
        for task in tasks:
            journal.record(task, (1234, 1795426999021097202))
            sizes.append((tmp_path / FOLDER / NAME).stat().st_size)
    assert all(np.diff(sizes) > 0), "each line is in the file at once"
    assert followed == [tmp_path / "in"]


def test_an_engine_is_known_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text("{}")
    assert digest_from_model(tmp_path) == digest_from_model(tmp_path / "engine.json")


def test_progress_counts_what_is_left_so_that_the_rate_is_that_of_this_run(
    job: Callable[..., Summary],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_pictures(tmp_path / "in", 6)
    job()
    (tmp_path / "out" / "d0" / "steel 2.png").unlink()
    (tmp_path / "out" / "d1" / "steel 5.png").unlink()
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    capsys.readouterr()
    job()
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" images,")[0] for line in told] == [
        "predict (4 done before): 1/2",
        "predict (4 done before): 2/2",
    ]
    assert told[-1].endswith(" 0 s left")


def test_folders_without_a_right_to_read_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found has; root may read everything, so the refusal is put in its place."""
    real = os.scandir

    def scandir(folder: Path) -> object:
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    for name in ("lost+found", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".a.png.1-00000000.tmp").touch()
    monkeypatch.setattr(os, "scandir", scandir)
    folders = [tmp_path / name for name in ("lost+found", "own", "none")]
    remove_temporaries_of({folder / "a.png" for folder in folders})
    monkeypatch.undo()
    assert files_below(tmp_path) == ["lost+found/.a.png.1-00000000.tmp"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks anywhere")
def test_a_folder_without_locks_is_said_once(
    job: Callable[..., Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    write_pictures(tmp_path / "in", 3)
    assert counts(job()) == (3, 0, 0)
    assert caplog.text.count(f"no file can be locked below {tmp_path / 'out'}") == 1
