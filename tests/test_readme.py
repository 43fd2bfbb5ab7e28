"""What README says runs: its commands, in the order in which they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

PAGES = [ROOT / "docs" / name for name in ("from-pytorch-unet.md", "triton.md")]

BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```bash\n(.*?)```", re.DOTALL)
INDENTED = re.compile(r"^    [^#\n].*$", re.MULTILINE)
NAMED = re.compile(
    r"(?<!\S)(?:-o|-m|--out|--output|--output-dir|--report|--json|--merge|evaluate|inspect|refit|triton)"
    r" +([^\s`|]+)"
)
OURS = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
OURS |= {"docs", "scripts", "tests", "typings"}
"""Folders of a clone that hold the sources: nothing writes its results there."""


def blocks(path: Path) -> list[tuple[bool, str]]:
    """(whether it is to be run, commands) of every bash block."""
    return [(not skip, text) for skip, text in BLOCK.findall(path.read_text(encoding="utf-8"))]


def written_names(path: Path) -> set[str]:
    """What the commands of a page name as an output or a model, below the folder they run in."""
    text = path.read_text(encoding="utf-8")
    shown = [commands for _, commands in BLOCK.findall(text)] + INDENTED.findall(text)
    lines = [line for part in shown for line in part.splitlines() if not line.startswith("#")]
    names = {name for line in lines for name in NAMED.findall(line)}
    return {name for name in names if re.fullmatch(r"\w[\w./-]*", name) and "unetrt." not in name}


def test_both_readmes_have_the_same_commands() -> None:
    assert blocks(ENGLISH) == blocks(CHINESE)
    assert sum(run for run, _ in blocks(ENGLISH)) >= 3


@pytest.mark.parametrize(
    "path", [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_its_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize(
    "path", [ENGLISH, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_no_command_names_a_folder_of_the_sources(path: Path) -> None:
    """In a clone `build -o engine` would meet the folder engine/."""
    assert {name for name in written_names(path) if name.split("/")[0] in OURS} == set()


def test_what_the_pages_write_does_not_go_into_a_commit() -> None:
    """In a clone, where most of them are run, `git add .` is to take sources alone."""
    names = set().union(*map(written_names, (ENGLISH, *PAGES, ROOT / "docs" / "docker.md")))
    assert len(names) > 10
    places = [name if Path(name).suffix else f"{name}/x" for name in (*names, "data/imgs")]
    git = shutil.which("git") or pytest.skip("no git here")
    done = subprocess.run(
        [git, "check-ignore", *places], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 128:
        pytest.skip(f"no clone: {done.stderr.strip()}")
    assert set(places) - set(done.stdout.split()) == set()


def test_every_verb_is_in_the_table_of_commands() -> None:
    from unetrt.cli.main import VERBS

    for path in (ENGLISH, CHINESE):
        text = path.read_text(encoding="utf-8")
        assert [verb for verb in VERBS if f"| `{verb}` |" not in text] == []


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `make demo` leaves it, but for the bench.

    A network that is trained less has margins too thin for the gate in bf16.
    """
    from unetrt.bench.demo import DemoOptions, run_demo

    folder = tmp_path_factory.mktemp("readme")
    run_demo(folder / "demo", DemoOptions(bench=False), "unetrt demo")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("commands", [text for run, text in blocks(ENGLISH) if run])
def test_the_commands_run(commands: str, after_the_demo: Path) -> None:
    run_commands(commands, after_the_demo)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_commands_of_a_page_run(page: Path, after_the_demo: Path, tmp_path: Path) -> None:
    """In a folder of the page's own, which has the demo in it."""
    (tmp_path / "demo").symlink_to(after_the_demo / "demo")
    for run, commands in blocks(page):
        if run:
            run_commands(commands, tmp_path)


def run_commands(commands: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
