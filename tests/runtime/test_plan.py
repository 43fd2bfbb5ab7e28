"""Inputs expanded to tasks: files, folders, globs, lists; outputs that never meet."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetrt.contract.errors import UserError
from unetrt.runtime.plan import Task, plan_tasks


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in these tests are relative, as a user types them."""
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    """Make empty files; planning never opens one."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def planned(tasks: Iterable[Task]) -> list[tuple[str, str]]:
    return [(str(task.source), str(task.output)) for task in tasks]


def test_a_file_gets_its_mask_beside_it_as_the_reference_names_it() -> None:
    touch("imgs/car.jpg")
    assert planned(plan_tasks(["imgs/car.jpg"])) == [("imgs/car.jpg", "imgs/car_OUT.png")]


def test_reference_names_of_one_stem_do_not_meet() -> None:
    touch("a.png", "a.jpg", "a.tif")
    tasks = plan_tasks(["a.png", "a.jpg", str(Path("a.tif").absolute())])
    assert [task.output.name for task in tasks if task.output] == [
        "a_OUT.png",
        "a.jpg_OUT.png",
        "a.tif_OUT.png",
    ]


def test_a_folder_keeps_its_tree_and_passes_over_what_is_hidden_or_no_image() -> None:
    touch("in/b.png", "in/x/y/a.JPG", "in/.hid.png", "in/.git/c.png", "in/notes.txt")
    assert planned(plan_tasks(["in"], output_dir=Path("out"))) == [
        ("in/b.png", "out/b.png"),
        ("in/x/y/a.JPG", "out/x/y/a.png"),
    ]


def test_masks_of_an_earlier_run_beside_their_images_are_no_images() -> None:
    touch("in/a.png", "in/a_OUT.png", "in/b_OUT.png")
    assert planned(plan_tasks(["in"], output_dir=Path("out"))) == [
        ("in/a.png", "out/a.png"),
        ("in/b_OUT.png", "out/b_OUT.png"),
    ]


@pytest.mark.parametrize("pattern", ["in/*.png", "in/**/*.png"])
def test_nor_are_they_for_a_pattern(pattern: str) -> None:
    touch("in/a.png", "in/b.png")
    first = plan_tasks([pattern])
    touch(*(str(task.output) for task in first))
    assert plan_tasks([pattern]) == first
    touch("in/c_OUT.png")
    assert [task.source.name for task in plan_tasks(["in/*_OUT.png"])] == [
        "a_OUT.png",
        "b_OUT.png",
        "c_OUT.png",
    ], "asked for by their names"


def test_a_second_run_beside_the_images_plans_the_same() -> None:
    touch("in/a.png", "in/a.jpg")
    first = planned(plan_tasks(["in"]))
    touch(*(output for _, output in first))
    assert planned(plan_tasks(["in"])) == first


def test_a_glob_goes_through_folders_and_its_fixed_part_is_left_off() -> None:
    touch("in/a.png", "in/x/b.png", "in/x/y/c.png", "in/x/d.jpg")
    assert planned(plan_tasks(["in/**/*.png"], output_dir=Path("out"))) == [
        ("in/a.png", "out/a.png"),
        ("in/x/b.png", "out/x/b.png"),
        ("in/x/y/c.png", "out/x/y/c.png"),
    ]
    absolute = str(Path("in/x/*.png").absolute())
    assert [t.output for t in plan_tasks([absolute], output_dir=Path("o"))] == [Path("o/b.png")]


def test_a_glob_with_dots_cannot_leave_the_output_folder() -> None:
    touch("in/x/b.png", "in/a.png", "top.png")
    for pattern in ("in/*/../a.png", "in/*/../../top.png"):
        (task,) = plan_tasks([pattern], output_dir=Path("out"))
        assert task.output is not None
        assert ".." not in task.output.parts


def test_two_stars_go_through_all_folders_above_too(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("in/a.png", "in/x/b.png", "in/x/y/c.png", "here/d.png")
    monkeypatch.chdir("here")
    tasks = plan_tasks(["../in/**/*.png"], output_dir=Path("out"))
    assert [str(task.output) for task in tasks] == ["out/a.png", "out/x/b.png", "out/x/y/c.png"]
    with pytest.raises(UserError, match="goes down only"):
        plan_tasks(["../**/../*.png"], output_dir=Path("out"))


def test_names_that_a_file_system_may_take_for_one_stay_two() -> None:
    """As macOS, Windows and exFAT do with case, and macOS with the forms of ü."""
    touch("in/A.jpg", "in/a.jpg", "in/X/c.png", "in/x/c.tif", "in/u\u0308.png", "in/\xfc.png")
    tasks = plan_tasks(["in"], output_dir=Path("out"))
    names = [unicodedata.normalize("NFC", str(task.output)).casefold() for task in tasks]
    assert len(set(names)) == 6
    assert {"out/A.png", "out/a.jpg.png"} <= {str(task.output) for task in tasks}
    names = [str(task.output).casefold() for task in plan_tasks(["in/A.jpg", "in/a.jpg"])]
    assert len(set(names)) == 2


def test_names_that_a_job_has_given_stay_though_they_differ_in_case_only() -> None:
    touch("in/A.png", "in/a.png")
    recorded = {str(Path("in", name).absolute()): name for name in ("A.png", "a.png")}
    tasks = plan_tasks(["in"], output_dir=Path("out"), recorded=recorded)
    assert [str(task.output) for task in tasks] == ["out/A.png", "out/a.png"]


def test_a_line_that_leads_nowhere_costs_no_other() -> None:
    """A loop of links, and a name too long for the system with a space before it."""
    touch("a.png")
    Path("loop").symlink_to("loop")
    Path("list.txt").write_text(f"a.png\nloop/x.png\n {'y' * 300}.png\n")
    tasks = plan_tasks(["@list.txt"], output_dir=Path("out"))
    assert [str(task.source)[:10] for task in tasks] == ["a.png", "loop/x.png", "yyyyyyyyyy"]


def test_a_name_with_magic_letters_is_that_file_when_it_is_there() -> None:
    touch("shot[1].png", "@home.png", "with space/ümlaut ⚙.png")
    names = ["shot[1].png", "@home.png", "with space/ümlaut ⚙.png"]
    assert [str(task.source) for task in plan_tasks(names)] == names


def test_a_list_keeps_the_folders_that_it_names() -> None:
    root = Path.cwd()
    lines = ["imgs/a.png", "", "  ", f"{root}/b.png", "../../up/c.png", "./d.png "]
    Path("list.txt").write_text("\ufeff" + "\r\n".join(lines) + "\n", encoding="utf-8")
    tasks = plan_tasks(["@list.txt"], output_dir=Path("out"))
    inside = "/".join(root.parts[1:])
    assert planned(tasks) == [
        ("imgs/a.png", "out/imgs/a.png"),
        (f"{root}/b.png", f"out/{inside}/b.png"),
        ("../../up/c.png", "out/up/c.png"),
        ("d.png", "out/d.png"),
    ]


@pytest.mark.parametrize("line", ["..", "/", ".", "a/.."])
def test_a_list_that_names_no_file_is_refused(line: str) -> None:
    Path("list.txt").write_text(f"a.png\n{line}\n")
    with pytest.raises(UserError, match="names a folder"):
        plan_tasks(["@list.txt"], output_dir=Path("out"))


def test_one_stem_twice_takes_the_suffix_in() -> None:
    touch("in/a.png", "in/a.jpg", "in/a.jpg.png", "two/a.png", "three/a.png")
    tasks = plan_tasks(["in", "two", "three"], output_dir=Path("out"))
    assert planned(tasks) == [
        ("in/a.jpg", "out/a.png"),
        ("in/a.jpg.png", "out/a.jpg.png"),
        ("in/a.png", "out/a.png.png"),
        ("two/a.png", "out/a.png-2.png"),
        ("three/a.png", "out/a.png-3.png"),
    ]


def test_a_mask_does_not_take_a_folders_name() -> None:
    touch("in/a.jpg", "in/a.png/b.png")
    outputs = [task.output for task in plan_tasks(["in"], output_dir=Path("out"))]
    assert outputs == [Path("out/a.jpg.png"), Path("out/a.png/b.png")]


def test_a_file_that_is_named_several_times_is_one_task() -> None:
    touch("in/a.png")
    Path("link").symlink_to("in")
    names = ["in/a.png", "./in/a.png", "in/../in/a.png", str(Path("in/a.png").absolute())]
    tasks = plan_tasks([*names, "in", "in/*.png", "link/a.png"])
    assert planned(tasks) == [("in/a.png", "in/a_OUT.png")]


def test_outputs_are_taken_in_order_one_an_image() -> None:
    touch("a.png", "b.png")
    tasks = plan_tasks(["b.png", "a.png"], outputs=[Path("x.png"), Path("y.tif")])
    assert planned(tasks) == [("b.png", "x.png"), ("a.png", "y.tif")]
    with pytest.raises(UserError) as caught:
        plan_tasks(["a.png", "b.png"], outputs=[Path("x.png")])
    assert caught.value.seen == "1 files for 2 images"


@pytest.mark.parametrize("again", ["x.png", "./x.png", "sub/../x.png"])
def test_one_output_for_two_images_is_refused(again: str) -> None:
    touch("a.png", "b.png", "sub/c.png")
    with pytest.raises(UserError, match="one file twice"):
        plan_tasks(["a.png", "b.png"], outputs=[Path("x.png"), Path(again)])


def test_nothing_is_saved_on_demand() -> None:
    touch("a.png")
    assert plan_tasks(["a.png"], save=False) == [Task(Path("a.png"), None)]


def test_a_mask_never_replaces_an_image_of_the_job() -> None:
    touch("in/a.png", "in/a_OUT.png")
    Path("link").symlink_to("in")
    for arguments in (
        {"output_dir": Path("in")},
        {"output_dir": Path("link")},
        {"outputs": [Path("in/../in/a.png"), Path("z.png")]},
    ):
        with pytest.raises(UserError, match="replace the image"):
            plan_tasks(["in/a.png", "in/a_OUT.png"], **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="replace the image"):
        plan_tasks(["in/a.png", "in/a_OUT.png"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.png"], "no image at missing.png"),
        (["@missing.txt"], "cannot read the list"),
        (["@binary.txt"], "cannot read the list"),
        (["@empty.txt"], "no input images"),
        (["none/*.png"], "no image matches"),
        (["empty"], "no images in empty"),
        ([], "no input images"),
    ],
)
def test_what_names_no_image_is_refused(inputs: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=message) as caught:
        plan_tasks(inputs, output_dir=Path("out"))
    assert caught.value.seen is not None
    assert caught.value.expected is not None


def test_an_empty_name_is_not_the_working_folder() -> None:
    touch("a.png")
    with pytest.raises(UserError, match="without a name"):
        plan_tasks([""])


def test_two_ways_to_name_outputs_exclude_each_other() -> None:
    touch("a.png")
    with pytest.raises(UserError, match="exclude each other"):
        plan_tasks(["a.png"], outputs=[Path("x.png")], output_dir=Path("out"))


NAMES = st.sampled_from(["a", "b", "a.png", "a.jpg", ".h.png", "a.jpg.png", "ü ⚙.png", "a_OUT.png"])
TREE = st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=TREE, data=st.data())
def test_outputs_differ_and_stay_inside(
    tree: set[tuple[str, ...]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts in [("only.png",), *sorted(tree)]:
        path = root.joinpath("in", *parts)
        if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    files = [path for path in root.rglob("*") if path.is_file()]
    listed = data.draw(st.lists(st.sampled_from(files), max_size=4))
    odd = [os.path.join("..", "..", *path.parts[-2:]) for path in listed]  # noqa: PTH118
    (root / "list").write_text("\n".join([*map(str, listed), *odd]))
    out = root / "out"
    inputs = [str(files[0]), f"{root}/in/**/*", f"@{root}/list"]
    outputs = [
        task.output for task in plan_tasks(inputs, output_dir=out) if task.output is not None
    ]
    assert len(set(outputs)) == len(outputs)
    for output in outputs:
        assert output.resolve().is_relative_to(out)
        assert not set(output.parents) & set(outputs), "a file is no folder"
        assert output.suffix == ".png"


class _Input:
    """Standard input that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_standard_input_gives_one_path_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a b.png", " edge .png ", "ümlaut ⚙.png", "sub/c\x0b\u2028.png"]
    touch(*names)
    data = "\n".join(["", *names, "gone.png  ", "dos.png\r", ""]).encode()
    monkeypatch.setattr("sys.stdin", _Input(data + b"latin-\xe9.png\n"))
    tasks = plan_tasks(["-"], output_dir=Path("out"))
    assert [str(task.source) for task in tasks] == [
        *names,
        "gone.png",
        "dos.png",
        "latin-\udce9.png",
    ]
    assert planned(tasks)[3][1] == "out/sub/c\x0b\u2028.png"


@pytest.mark.parametrize(
    ("data", "told"), [(b"", "no input images"), (b"a.png\0b.png\0", "separates names by NUL")]
)
def test_standard_input_without_paths_is_refused(
    data: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", _Input(data))
    with pytest.raises(UserError, match=told):
        plan_tasks(["-"])


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="closed"):
        plan_tasks(["-"])


def test_a_file_that_is_called_minus_has_a_path() -> None:
    touch("-")
    assert planned(plan_tasks(["./-"], output_dir=Path("out"))) == [("-", "out/-.png")]


def test_suffix_and_overlays_keep_the_tree() -> None:
    touch("in/a.png", "in/x/b.jpg", "in/a.jpg")
    tasks = plan_tasks(["in"], output_dir=Path("o"), suffix=".npy", overlay_dir=Path("v"))
    assert [(str(t.output), str(t.overlay)) for t in tasks] == [
        ("o/a.npy", "v/a.jpg"),
        ("o/a.png.npy", "v/a.png.jpg"),
        ("o/x/b.npy", "v/x/b.jpg"),
    ]
    with pytest.raises(UserError, match="overlay would replace"):
        plan_tasks(["in/a.jpg"], output_dir=Path("o"), overlay_dir=Path("in"))


@pytest.mark.parametrize("inputs", [["in"], ["in/**/*.*"], ["link"]])
def test_a_second_run_passes_over_an_output_folder_among_the_images(inputs: list[str]) -> None:
    touch("in/a.png", "in/x/b.png")
    Path("link").symlink_to("in")

    def tasks() -> list[Task]:
        return plan_tasks(inputs, output_dir=Path("in/x/out"), overlay_dir=Path("in/look"))

    first = planned(tasks())
    assert len(first) == 2
    touch("in/x/out/a.png", "in/x/out/x/b.png", "in/look/a.jpg", "in/look/x/b.jpg")
    assert planned(tasks()) == first
    assert len(plan_tasks(["in/look/a.jpg"], output_dir=Path("in/look"))) == 1, "named, so meant"
