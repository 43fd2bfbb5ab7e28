"""What is known of an image between two runs, and what one that cannot be asked for costs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from tests.runtime.conftest import ThresholdEngine, write_picture
from tests.runtime.test_journal import MODEL, counts, flat
from unetrt.contract.addresses import path_from_text
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.stamps import stamp_of

Job = Callable[..., Summary]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    def run(images: str = "", **journal: Any) -> Summary:
        out = tmp_path / "out"
        tasks = plan_tasks([images or str(tmp_path / "in")], output_dir=out)
        options = JournalOptions(output_dir=out, model=MODEL, **journal)
        with ThresholdEngine() as engine:
            return predict_masks(engine, tasks, PredictOptions(journal=options))

    return run


def refuse(monkeypatch: pytest.MonkeyPatch, image: Path, error: OSError) -> None:
    """Let the system say `error` when it is asked for the image."""
    real = Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if path == image:
            raise error
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", refused)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "I/O error")])
def test_an_image_that_cannot_be_asked_for_fails_and_keeps_its_mask(
    error: OSError, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_picture(tmp_path / "in" / "a.png", flat(1))
    write_picture(tmp_path / "in" / "b.png", flat(1))
    job()
    with monkeypatch.context() as patch:
        refuse(patch, image, error)
        summary = job()
    assert counts(summary) == (0, 1, 1)
    assert str(error.strerror) in summary.failures[0]["reason"]
    assert (tmp_path / "out" / "a.png").is_file()
    assert counts(job()) == (1, 0, 1), "a failure is tried again"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "none"), NotADirectoryError(20, "none")])
def test_an_image_that_has_gone_is_done(
    error: OSError, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_picture(tmp_path / "in" / "a.png", flat(1))
    job()
    refuse(monkeypatch, image, error)
    assert counts(job()) == (0, 0, 1)


def test_an_error_of_a_store_costs_the_image_alone(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as botocore's, which are no OSErrors."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    picture = write_picture(tmp_path / "a.png", flat(1)).read_bytes()
    for name in ("a", "b"):
        store.pipe(f"/stamps/{name}.png", picture)
    job("memory://stamps")
    real = type(store).info

    def info(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("/a.png"):
            raise RuntimeError("the token has expired")
        return real(self, path, **options)

    monkeypatch.setattr(type(store), "info", info)
    summary = job("memory://stamps")
    assert counts(summary) == (0, 1, 1)
    assert "the token has expired" in summary.failures[0]["reason"]
    store.store.clear()


def test_an_image_replaced_in_a_store_is_done_again(job: Job, tmp_path: Path) -> None:
    """Of the same size, in a store that only says when its files were created."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    picture = write_picture(tmp_path / "a.png", flat(1)).read_bytes()
    store.pipe("/stamps/a.png", picture)
    assert stamp_of(path_from_text("memory://stamps/a.png"))[1] > 0
    assert counts(job("memory://stamps")) == (1, 0, 0)
    assert counts(job("memory://stamps")) == (0, 0, 1)
    store.pipe("/stamps/a.png", picture)
    assert counts(job("memory://stamps")) == (1, 0, 0)
    store.store.clear()


def test_a_mask_that_its_format_cannot_hold_costs_that_image_alone(tmp_path: Path) -> None:
    """JPEG has no side above 65500."""
    long = write_picture(tmp_path / "long.png", np.full((1, 65501, 1), 1, np.uint8))
    good = write_picture(tmp_path / "good.png", flat(1))
    tasks = [Task(path, tmp_path / f"{path.stem}.jpg") for path in (long, good)]
    with ThresholdEngine() as engine:
        summary = predict_masks(engine, tasks, PredictOptions())
    assert counts(summary) == (1, 1, 0)
    reason = summary.failures[0]["reason"]
    assert "cannot encode" in reason
    assert "65501x1 pixels" in reason
    assert "name it .png" in reason
    assert not (tmp_path / "long.jpg").exists()
