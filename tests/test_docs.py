"""The documents quote messages that the code has, and commands and flags that there are."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from unetrt.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("contract", "training", "engine", "runtime", "export", "bench", "cli")
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "from-pytorch-unet.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"\*\*`([^`]+)`\*\*", TEXT)
HOUSE = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
NAMED = re.findall(r"`(\w+)` (?:\(|of |in )`([a-z_]+/\w+\.py)`", HOUSE)
PAST_ONE_PROCESS = (
    "cli/predict_many.py",
    "contract/addresses.py",
    "runtime/address_journal.py",
    "runtime/address_plan.py",
    "runtime/cluster.py",
    "runtime/cluster_work.py",
    "runtime/devices.py",
    "runtime/merge.py",
)
OTHERS = {"--gpus", "--pids-limit", "--head"}
"""Flags of Docker and of Ray."""


def texts_of_the_code() -> set[str]:
    """Every text in the sources; what is put in when it runs is an ellipsis."""
    found = set()
    for path in (p for folder in FOLDERS for p in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= texts_in(node)
    return found


def texts_in(node: ast.AST) -> set[str]:
    """The text that a node is, if it is one."""
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
        return {"".join(map(str, parts))}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {re.sub(r"%(\.\d)?[sdf]", "…", node.value)}
    return set()


@pytest.fixture(scope="module")
def texts() -> set[str]:
    return texts_of_the_code()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_code(message: str, texts: set[str]) -> None:
    assert message in texts


def messages_of(path: Path) -> set[str]:
    """What its UserErrors say first, and its warnings."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "log.warning"):
            found |= texts_in(node.args[0])
    return found - {"…"}


@pytest.mark.parametrize("name", PAST_ONE_PROCESS)
def test_what_is_said_past_one_process_is_in_the_document(name: str) -> None:
    messages = messages_of(ROOT / name)
    assert messages, "or the file has none any more"
    assert messages - set(MESSAGES) == set()


def test_each_message_stands_once() -> None:
    assert len(MESSAGES) > 30
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize(("name", "path"), NAMED)
def test_what_contributing_names_is_in_its_file(name: str, path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(class |def )?{name}\b", text, re.MULTILINE)


def test_contributing_names_what_passes_between_the_stages() -> None:
    assert len(NAMED) >= 9


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(verb, exit_on_error=False)
    importlib.import_module(f"unetrt.cli.{verb}").add_arguments(parser)
    return parser


def test_the_flags_that_help_are_there() -> None:
    known = OTHERS.union(*(parser_of(verb)._option_string_actions for verb in VERBS))
    named = set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", TEXT))
    assert named - known == set()


def commands_of_pytorch_unet() -> list[tuple[str, str]]:
    """(old, new) of every row of the tables that begins with one of its scripts."""
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", REFERENCE, re.MULTILINE)
    return [(old, new) for old, new in rows if ".py" in old and "unetrt" in new]


def test_every_command_of_its_readme_has_its_row() -> None:
    assert len(commands_of_pytorch_unet()) >= 9


@pytest.mark.parametrize(("old", "new"), commands_of_pytorch_unet())
def test_a_command_of_pytorch_unet_keeps_its_flags(old: str, new: str) -> None:
    words = shlex.split(new)
    verb, *arguments = words[words.index("unetrt") + 1 :]
    parsed = parser_of(verb).parse_args(arguments)
    assert vars(parsed)
    flags = {word for word in shlex.split(old) if word.startswith("-")}
    assert flags <= set(arguments)
