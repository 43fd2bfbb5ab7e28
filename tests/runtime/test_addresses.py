"""A job whose images and masks lie in a store: the masks of a job here, and nothing done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.runtime.encodings import write_mixed
from tests.runtime.test_journal import MODEL, counts
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard

PICTURES = 12
OUT = "memory://out/masks"


@pytest.fixture
def store() -> Iterator[Any]:
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture(scope="module")
def engine(exported: Callable[..., Path]) -> Iterator[Engine]:
    with open_engine(exported()) as opened:
        yield opened


@pytest.fixture
def pictures(tmp_path: Path, store: Any) -> Path:
    """A folder of pictures, one of them broken, and the same below memory://in."""
    paths = write_mixed(tmp_path / "in", PICTURES)
    paths[3].write_bytes(b"no image")
    for path in paths:
        name = path.relative_to(tmp_path / "in").as_posix()
        store.pipe(f"/in/{name}", path.read_bytes())
    return tmp_path / "in"


@pytest.fixture
def job(engine: Engine, pictures: Path) -> Callable[..., Summary]:
    def run(
        images: str = "memory://in", out: str = OUT, model: str = MODEL, **journal: Any
    ) -> Summary:
        folder = path_from_text(out)
        options = JournalOptions(output_dir=folder, model=model, **journal)
        tasks = plan_tasks([images], output_dir=folder)
        return predict_masks(engine, tasks, PredictOptions(journal=options))

    return run


def masks_in(store: Any, root: str = "/out/masks") -> dict[str, bytes]:
    names = [name for name in store.find(root) if "/.unetrt/" not in name]
    return {name.removeprefix(f"{root}/"): store.cat_file(name) for name in names}


def test_masks_in_a_store_are_those_of_a_folder(
    job: Callable[..., Summary], store: Any, pictures: Path, tmp_path: Path
) -> None:
    here = job(str(pictures), str(tmp_path / "out"))
    there = job()
    assert counts(here) == counts(there) == (PICTURES - 1, 1, 0)
    local = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*.png")
    }
    assert masks_in(store) == local
    assert there.failures[0]["input"].startswith("memory://in/")
    mixed = job("memory://in", str(tmp_path / "mixed"))
    assert counts(mixed) == (PICTURES - 1, 1, 0)
    assert counts(job("memory://in", str(tmp_path / "mixed"))) == (0, 1, PICTURES - 1)


def test_a_job_goes_on_with_what_is_not_there(job: Callable[..., Summary], store: Any) -> None:
    job()
    first = masks_in(store)
    gone = sorted(first)[:3]
    for name in gone:
        store.rm(f"/out/masks/{name}")
    assert counts(job()) == (3, 1, PICTURES - 4)
    assert masks_in(store) == first


def test_a_changed_image_is_done_again(job: Callable[..., Summary], store: Any) -> None:
    job()
    name = next(name for name in store.find("/in") if name.endswith(".png"))
    time.sleep(0.01)
    store.pipe(name, store.cat_file(name))
    assert counts(job())[0] == 1


def test_restart_makes_every_mask_again(job: Callable[..., Summary], store: Any) -> None:
    job()
    time.sleep(0.01)
    assert counts(job(restart=True)) == (PICTURES - 1, 1, 0)
    with pytest.raises(UserError, match="masks of all shards old"):
        job(restart=True, shard=Shard(1, 2))


def test_masks_of_another_model_are_not_mixed_in(job: Callable[..., Summary], store: Any) -> None:
    job()
    with pytest.raises(UserError, match="masks of another job") as caught:
        job(model="n" * 64)
    assert "model" in str(caught.value)
    assert json.loads(store.cat_file("/out/masks/.unetrt/job.json"))["model"] == MODEL
    store.pipe("/out/masks/.unetrt/job.json", b"{")
    with pytest.raises(UserError, match="cannot use memory://out/masks"):
        job()


def test_two_shards_make_the_whole(job: Callable[..., Summary], store: Any, engine: Engine) -> None:
    from unetrt.runtime.shards import tasks_of_shard

    folder = path_from_text(OUT)
    tasks = plan_tasks(["memory://in"], output_dir=folder)
    done = 0
    for index in (1, 2):
        shard = Shard(index, 2)
        options = JournalOptions(output_dir=folder, model=MODEL, shard=shard)
        part = tasks_of_shard(tasks, shard, folder)
        done += predict_masks(engine, part, PredictOptions(journal=options)).done
    assert done == len(masks_in(store)) == PICTURES - 1


def test_one_file_for_the_whole_job_needs_a_folder_here(engine: Engine, pictures: Path) -> None:
    journal = JournalOptions(output_dir=path_from_text(OUT), model=MODEL)
    tasks = plan_tasks(["memory://in"], output_dir=path_from_text(OUT), save=False)
    with pytest.raises(UserError, match="a folder of this machine"):
        predict_masks(engine, tasks, PredictOptions(format="rle", journal=journal))


def test_lists_globs_and_single_addresses(pictures: Path, tmp_path: Path, store: Any) -> None:
    names = [f"memory:/{name}" for name in sorted(store.find("/in"))]
    (tmp_path / "list.txt").write_text("\n".join(names[:4]))
    tasks = plan_tasks([f"@{tmp_path / 'list.txt'}"], output_dir=path_from_text(OUT))
    assert [str(task.source) for task in tasks] == names[:4]
    assert len(plan_tasks(["memory://in/**/*.png"], output_dir=tmp_path / "o")) < PICTURES
    (one,) = plan_tasks([names[0]], output_dir=path_from_text(OUT))
    assert str(one.output).startswith(f"{OUT}/")
    for wrong in ("memory://in/nothing/*.png", "memory://nowhere"):
        with pytest.raises(UserError):
            plan_tasks([wrong], output_dir=tmp_path / "o")


def test_masks_below_the_images_are_no_images(job: Callable[..., Summary], store: Any) -> None:
    assert counts(job(out="memory://in/masks")) == (PICTURES - 1, 1, 0)
    assert counts(job(out="memory://in/masks")) == (0, 1, PICTURES - 1)
