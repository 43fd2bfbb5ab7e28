"""What README says runs: its commands, in the order in which they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

PAGES = [ROOT / "docs" / name for name in ("from-pytorch-unet.md", "triton.md")]

BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```bash\n(.*?)```", re.DOTALL)


def blocks(path: Path) -> list[tuple[bool, str]]:
    """(whether it is to be run, commands) of every bash block."""
    return [(not skip, text) for skip, text in BLOCK.findall(path.read_text(encoding="utf-8"))]


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
