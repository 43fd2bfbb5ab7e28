"""The house: one-way imports between the folders, small files, links for the type checkers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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


def test_the_contract_needs_neither_torch_nor_a_backend() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
    for path in SOURCES:
        if path.parent.name == "contract":
            assert not imported_folders(path) & heavy, path


def test_typings_link_to_every_folder() -> None:
    links = {link.name: link.resolve() for link in (ROOT / "typings" / "unetrt").iterdir()}
    assert links == {folder: ROOT / folder for folder in ORDER}
