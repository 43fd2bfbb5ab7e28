"""A job whose images and masks lie in a store: the masks of a job here, and nothing done twice."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from tests.conftest import steel
from tests.runtime.conftest import write_picture
from tests.runtime.encodings import write_mixed
from tests.runtime.test_journal import MODEL, counts
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.contract.files import image_paths
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.merge import merge_journals
from unetrt.runtime.ownership import recorded_outputs
from unetrt.runtime.plan import plan_tasks, tasks_of_shard
from unetrt.runtime.predict import OneEngine, PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard

PICTURES = 12
OUT = "memory://out/masks"


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
        tasks = plan_tasks([images], output_dir=folder, recorded=recorded_outputs(folder))
        shard = journal.get("shard")
        tasks = tasks if shard is None else tasks_of_shard(tasks, shard, folder)
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


def test_two_shards_make_the_whole(job: Callable[..., Summary], store: Any) -> None:
    with pytest.raises(UserError, match="no journal below"):
        merge_journals([path_from_text(OUT)])
    first = job(shard=Shard(1, 2))
    merged = merge_journals([path_from_text(OUT)])
    assert (merged.planned, merged.done, merged.failed) == (
        first.planned,
        first.done,
        first.failed,
    )
    assert merged.missing_shards == ["2/2"]
    second = job(shard=Shard(2, 2))
    assert first.done + second.done == len(masks_in(store)) == PICTURES - 1
    merged = merge_journals([path_from_text(OUT)])
    assert (merged.planned, merged.done, merged.failed) == (PICTURES, PICTURES - 1, 1)
    assert merged.failures == first.failures + second.failures
    assert not merged.complete


def test_a_restart_forgets_the_plans_of_shards(job: Callable[..., Summary], store: Any) -> None:
    for index in (1, 2):
        job(shard=Shard(index, 2))
    job(restart=True)
    merged = merge_journals([path_from_text(OUT)])
    assert (merged.planned, merged.done, merged.failed) == (PICTURES, PICTURES - 1, 1)


def test_what_is_missing_is_named_without_the_images(
    job: Callable[..., Summary], store: Any
) -> None:
    job()
    gone = sorted(masks_in(store))[0]
    store.rm(f"/out/masks/{gone}")
    store.rm("/in", recursive=True)
    merged = merge_journals([path_from_text(OUT)])
    assert (merged.planned, merged.done, merged.failed, merged.skipped) == (
        PICTURES,
        PICTURES - 2,
        1,
        1,
    )
    assert Path(merged.missing_images[0]).stem == Path(gone).stem


def test_a_job_that_ends_at_once_has_its_plan(
    job: Callable[..., Summary], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OneEngine, "write_masks", killed)
        with pytest.raises(KeyboardInterrupt):
            job()
    merged = merge_journals([path_from_text(OUT)])
    assert (merged.planned, merged.done, merged.skipped) == (PICTURES, 0, PICTURES)


def twins(tmp_path: Path) -> Path:
    """A folder of a.png, and beside it an a.bmp that is to come, older than any mask."""
    images = tmp_path / "steel"
    write_picture(images / "a.png", steel(1, 48, 48))
    write_picture(tmp_path / "a.bmp", steel(2, 48, 48))
    return images


def test_a_new_image_takes_no_name_of_a_done_one(
    job: Callable[..., Summary], store: Any, tmp_path: Path
) -> None:
    """It is older than the mask, so that time alone would call it done."""
    images = twins(tmp_path)
    assert counts(job(str(images))) == (1, 0, 0)
    first = masks_in(store)
    (tmp_path / "a.bmp").rename(images / "a.bmp")
    assert counts(job(str(images))) == (1, 0, 1)
    both = masks_in(store)
    assert both.keys() == {"a.png", "a.bmp.png"}
    assert both["a.png"] == first["a.png"] != both["a.bmp.png"]
    assert counts(job(str(images))) == (0, 0, 2)
    (images / "a.bmp").unlink()
    assert counts(job(str(images))) == (0, 0, 1)
    assert recorded_outputs(path_from_text(OUT)) == {
        str(images / "a.png"): "a.png",
        str(images / "a.bmp"): "a.bmp.png",
    }, "of the last run's images and of those before"


def test_the_mask_of_another_image_is_not_taken_for_this_ones(
    job: Callable[..., Summary], store: Any, tmp_path: Path
) -> None:
    images = twins(tmp_path)
    job(str(images))
    first = masks_in(store)
    (images / "a.png").unlink()
    (tmp_path / "a.bmp").rename(images / "a.bmp")
    with pytest.raises(UserError, match="mask of another image") as caught:
        job(str(images))
    assert str(caught.value.seen) == str(images / "a.png")
    assert masks_in(store) == first
    assert counts(job(str(images), restart=True)) == (1, 0, 0)


def test_a_damaged_plan_is_an_error(job: Callable[..., Summary], store: Any) -> None:
    job()
    plan = "/out/masks/.unetrt/plan.json.gz"
    whole = store.cat_file(plan)
    for content in (whole[:-9], b"{}", gzip.compress(b"[]"), gzip.compress(b'{"images": 1}')):
        store.pipe(plan, content)
        with pytest.raises(UserError, match=r"cannot use .*plan\.json\.gz"):
            job()


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


def test_what_is_there_by_the_name_of_a_pattern_is_meant_first(store: Any) -> None:
    for name in ("[a].png", "a.png", "[d]/b.jpg", "d/c.png"):
        store.pipe(f"/magic/{name}", b"")
    for text, names in (("[a].png", ["[a].png"]), ("[d]", ["b.jpg"]), ("[d]/*", ["c.png"])):
        tasks = plan_tasks([f"memory://magic/{text}"], output_dir=path_from_text(OUT))
        assert [task.source.name for task in tasks] == names
    with pytest.raises(UserError, match="masks among the images"):
        plan_tasks(["memory://magic/[d]"], output_dir=path_from_text("memory://magic/[d]"))


@pytest.mark.parametrize("key", ["x//a.png", "/a.png", "./a.png"])
def test_a_name_that_no_path_has_is_refused(key: str) -> None:
    """In a store it is an image beside a.png; as a path it is a.png, or is not there."""
    folder = path_from_text("memory://odd")
    store: Any = Mock(find=lambda root, detail: {f"{root}/{k}": {} for k in ("a.png", key)})
    with (
        patch("unetrt.contract.addresses.store_of", lambda path: (store, "/odd")),
        pytest.raises(UserError, match="a name that no path has") as caught,
    ):
        image_paths(folder)
    assert caught.value.seen == key


def test_what_marks_a_folder_is_no_image() -> None:
    store: Any = Mock(find=lambda root, detail: {f"{root}/{k}": {} for k in ("a.png", "b.png/")})
    with patch("unetrt.contract.addresses.store_of", lambda path: (store, "/odd")):
        assert [path.name for path in image_paths(path_from_text("memory://odd"))] == ["a.png"]


def test_a_store_that_takes_no_mask_is_no_full_disk(job: Callable[..., Summary]) -> None:
    error = PermissionError("AccessDenied")
    with (
        patch("unetrt.runtime.work.write_atomically", Mock(side_effect=error)),
        pytest.raises(UserError, match="cannot write") as caught,
    ):
        job()
    assert "store" in str(caught.value.expected)
    assert "disk" not in str(caught.value.hint)


def test_masks_beside_the_images_are_no_images_for_a_pattern(store: Any) -> None:
    for name in ("a.png", "b.png", "b_OUT.png"):
        store.pipe(f"/beside/{name}", b"")
    for pattern in ("memory://beside/*.png", "memory://beside/**/*.png"):
        assert [task.source.name for task in plan_tasks([pattern])] == ["a.png", "b.png"]


def test_masks_below_the_images_are_no_images(job: Callable[..., Summary], store: Any) -> None:
    assert counts(job(out="memory://in/masks")) == (PICTURES - 1, 1, 0)
    assert counts(job(out="memory://in/masks")) == (0, 1, PICTURES - 1)


@pytest.mark.parametrize("look", ["memory://look", "{}/look"])
@pytest.mark.parametrize("out", [OUT, "{}/out"])
def test_a_foreign_overlay_is_not_replaced(
    engine: Engine, pictures: Path, tmp_path: Path, out: str, look: str
) -> None:
    folder, overlays = (path_from_text(text.format(tmp_path)) for text in (out, look))
    tasks = plan_tasks(["memory://in"], output_dir=folder, overlay_dir=overlays)
    foreign = tasks[0].overlay
    assert foreign is not None

    def run(shard: Shard | None = None) -> Summary:
        options = JournalOptions(output_dir=folder, model=MODEL, overlay_dir=overlays, shard=shard)
        mine = tasks if shard is None else tasks_of_shard(tasks, shard, folder)
        return predict_masks(engine, mine, PredictOptions(journal=options))

    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(UserError, match="no job of unetrt has written"):
        run()
    assert foreign.read_bytes() == b"mine"
    foreign.unlink()
    assert sum(run(Shard(index, 2)).done for index in (1, 2)) == PICTURES - 1
    run()  # what other shards have written is of this job
    assert run().skipped == PICTURES - 1


def test_masks_of_another_job_below_the_images_are_no_images(
    job: Callable[..., Summary], caplog: pytest.LogCaptureFixture
) -> None:
    job("memory://in", "memory://in/masks", shard=Shard(1, 2))
    job("memory://in", "memory://in/masks", shard=Shard(2, 2))
    assert counts(job("memory://in", OUT)) == (PICTURES - 1, 1, 0)
    assert f"wrote below memory://in are no images: {PICTURES - 1}" in caplog.text
    assert job("memory://in/masks", "memory://out/named").planned == PICTURES - 1


def test_masks_above_the_images(job: Callable[..., Summary], store: Any) -> None:
    for name in store.find("/in"):
        store.pipe(name.replace("/in/", "/above/images/", 1), store.cat_file(name))
    for expected in ((PICTURES - 1, 1, 0), (0, 1, PICTURES - 1)):
        assert counts(job("memory://above/images", "memory://above")) == expected
