"""Plans that would spoil the images, write elsewhere, or mean another thing the next time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.test_plan import planned, touch
from unetrt.contract.addresses import path_from_text
from unetrt.contract.errors import UserError
from unetrt.runtime.plan import plan_tasks


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        (["d"], "d"),
        (["d"], "./d/../d"),
        (["link"], "d"),
        (["d/*"], "d"),
        (["d/**/*.*"], "d"),
        (["d/sub"], "d"),
    ],
)
def test_masks_among_the_images_are_refused_at_the_first_run(inputs: list[str], out: str) -> None:
    touch("d/a.jpg", "d/sub/sub/b.tif")
    Path("link").symlink_to("d")
    with pytest.raises(UserError, match="images of the next run") as caught:
        plan_tasks(inputs, output_dir=Path(out))
    assert "--output-dir" in str(caught.value.hint)
    with pytest.raises(UserError, match="images of the next run"):
        plan_tasks(inputs, output_dir=Path(out), suffix=".npy")
    Path("d/a.jpg").rename("d/a.png")
    with pytest.raises(UserError, match="images of the next run"):
        plan_tasks(inputs, output_dir=Path("elsewhere"), overlay_dir=Path(out), suffix=".npy")


@pytest.mark.parametrize(
    ("inputs", "out", "suffix"),
    [
        (["d"], "d/masks", ".png"),
        (["d/*.jpg"], "d", ".npy"),
        (["d/*.jpg"], "d", ".png"),
        (["d/a.jpg"], "d", ".png"),
        (["d/sub"], ".", ".png"),
    ],
)
def test_masks_that_no_next_run_would_read_are_not(
    inputs: list[str], out: str, suffix: str
) -> None:
    touch("d/a.jpg", "d/sub/b.jpg")
    tasks = plan_tasks(inputs, output_dir=Path(out), suffix=suffix)
    touch(*(str(task.output) for task in tasks))
    assert plan_tasks(inputs, output_dir=Path(out), suffix=suffix) == tasks


def test_masks_among_the_images_of_a_store_are_refused() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/among/in/a.jpg", b"x")
    for inputs in (["memory://among/in"], ["memory://among/in/**"]):
        with pytest.raises(UserError, match="images of the next run"):
            plan_tasks(inputs, output_dir=path_from_text("memory://among/in"))
    store.rm("/among", recursive=True)


@pytest.mark.parametrize("inputs", [["in"], ["in/**/*.png"]])
def test_a_mask_is_not_written_through_a_link_out_of_the_folder(inputs: list[str]) -> None:
    touch("in/s/a.png", "in/b.png", "victim/keep.png")
    Path("out").mkdir()
    Path("out/s").symlink_to("../victim")
    for arguments in ({"output_dir": Path("out")}, {"overlay_dir": Path("out")}):
        with pytest.raises(UserError, match="a link leads out of out") as caught:
            plan_tasks(inputs, **arguments)  # type: ignore[arg-type]
        assert "victim" in str(caught.value.seen)
    Path("out/s").unlink()
    Path("out/own").mkdir()
    Path("out/s").symlink_to("own")
    Path("to-out").symlink_to("out")
    assert len(plan_tasks(inputs, output_dir=Path("to-out"))) == 2, "links inside are its own"


def test_a_glob_through_a_loop_of_links_takes_the_shortest_spelling() -> None:
    touch("ln/z.png", "ln/deep/a.png")
    Path("ln/loop").symlink_to(".")
    Path("ln/deep/back").symlink_to("..")
    assert planned(plan_tasks(["ln/**/*.png"], output_dir=Path("out"))) == [
        ("ln/deep/a.png", "out/deep/a.png"),
        ("ln/z.png", "out/z.png"),
    ]


def test_an_output_folder_that_is_linked_to_is_passed_over() -> None:
    touch("in/a.png", "masks/a.png")
    Path("in/results").symlink_to("../masks")
    assert planned(plan_tasks(["in"], output_dir=Path("masks"))) == [("in/a.png", "masks/a.png")]
    assert len(plan_tasks(["in"], output_dir=Path("other"))) == 2
