"""The house: one-way imports between the folders, small files, links for the type checkers."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("contract", "training", "engine", "runtime", "export", "bench", "cli")
SOURCES = [path for folder in ORDER for path in sorted((ROOT / folder).glob("*.py"))]
MOST_LINES = 350


def imported_folders(path: Path) -> set[str]:
    """The folders of `from ..folder.module import …`; anything absolute by its first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level in (0, 2):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_imports_only_from_those_before_it(path: Path) -> None:
    allowed = set(ORDER[: ORDER.index(path.parent.name)])
    assert imported_folders(path) & set(ORDER) <= allowed
    assert "unetrt" not in imported_folders(path), "inside the package imports are relative"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_at_the_top_is_missing_on_windows(path: Path) -> None:
    missing = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
    body = ast.parse(path.read_text(encoding="utf-8")).body
    lines = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in lines if line.split()[1] in missing] == []


def test_the_contract_needs_neither_torch_nor_a_backend() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
    for path in SOURCES:
        if path.parent.name == "contract":
            assert not imported_folders(path) & heavy, path


def test_typings_link_to_every_folder() -> None:
    links = {link.name: link.resolve() for link in (ROOT / "typings" / "unetrt").iterdir()}
    assert links == {folder: ROOT / folder for folder in ORDER}


class Item:
    """Stands for a test with one mark."""

    def __init__(self, name: str) -> None:
        self.marks: list[Any] = [SimpleNamespace(name=name)]

    def get_closest_marker(self, name: str) -> bool:
        return any(mark.name == name for mark in self.marks)

    def add_marker(self, mark: Any) -> None:
        self.marks.append(mark)


@pytest.mark.parametrize(("asked", "skipped"), [("not slow", True), ("", True), ("gpu", False)])
def test_what_needs_a_gpu_runs_where_it_is_asked_for(asked: str, skipped: bool) -> None:
    """Not in the processes of `make test`, which would share it; and it says so."""
    items: Any = [Item("gpu"), Item("slow")]
    config: Any = SimpleNamespace(getoption=lambda _: asked)
    pytest_collection_modifyitems(config, items)
    assert [item.get_closest_marker("skip") for item in items] == [skipped, False]
