"""What is read as an image: patterns, and what may not be looked at."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runtime.conftest import write_picture
from tests.runtime.test_journal import flat
from unetrt.contract.errors import UserError
from unetrt.runtime.inputs import STDIN, Input, expand_inputs


def names(inputs: list[str]) -> list[str]:
    return [str(item.relative) for item in expand_inputs(inputs, [])]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/x.png", "a/y.jpg", "b/x.png", "b/c/x.png", ".h/x.png", "x.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, flat(1))
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/*.png", ["a/x.png", "b/x.png"]),
        ("*/x.*", ["a/x.png", "b/x.png"]),
        ("[ab]/?.*g", ["a/x.png", "a/y.jpg", "b/x.png"]),
        (".*/*.png", [".h/x.png"]),
        ("*/c/x.png", ["b/c/x.png"]),
        ("*/c/*", ["b/c/x.png"]),
        ("*", ["x.png"]),
    ],
)
def test_a_pattern_names_what_a_shell_would(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names([str(tree / pattern)]) == expected


def test_a_folder_that_may_not_be_listed_is_no_empty_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refused(folder: Any) -> list[str]:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(UserError, match=r"cannot read the folder .*/b"):
        names([str(tree / "*/*.png")])
    assert names([str(tree / "a/*.png")]) == ["x.png"]


def test_a_file_that_may_not_be_looked_at_is_an_image_that_cannot_be_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a folder that may not be entered: it costs itself alone."""

    def refused(path: Path, **options: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    closed = tree / "a" / "x.png"
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(type(closed), "exists", refused)
    assert expand_inputs([str(closed)], []) == [Input(closed, Path("x.png"))]


def test_a_list_on_standard_input_may_begin_with_a_mark_of_its_encoding(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\xef\xbb\xbf" + os.fsencode(tree / "x.png") + b"\n"
    stream = SimpleNamespace(buffer=SimpleNamespace(read=lambda: data))
    monkeypatch.setattr("sys.stdin", stream)
    assert [item.path for item in expand_inputs([STDIN], [])] == [tree / "x.png"]


@pytest.mark.parametrize(
    "address",
    [
        "zip://d/a.png::file:///tmp/z.zip",
        "tar://d::file:///tmp/z.tar",
        "filecache::file:///tmp/in",
        "zip://d",
    ],
)
def test_an_address_in_an_archive_is_refused(address: str) -> None:
    """Its images would be told apart by the archive's name alone."""
    with pytest.raises(UserError, match="cannot reach") as caught:
        expand_inputs([address], [])
    assert "unpack" in str(caught.value.hint)
