"""What can be known of Dockerfile.trt without Docker: its context, its user, its health."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE, IGNORE = ROOT / "Dockerfile.trt", ROOT / ".dockerignore"
TARGETS = ("cpu", "trt")


@dataclass(frozen=True)
class Stage:
    """A FROM and what follows it: (instruction, arguments)."""

    base: str
    name: str
    lines: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        return [text for name, text in self.lines if name == instruction][-1]


def instructions() -> list[tuple[str, str]]:
    text = DOCKERFILE.read_text(encoding="utf-8")
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", bare)
    found = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest) for name, rest in found]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for name, text in instructions():
        if name == "FROM":
            base, _, stage = text.partition(" AS ")
            found[stage] = Stage(base, stage, ())
        elif found:
            last = list(found.values())[-1]
            found[last.name] = Stage(last.base, last.name, (*last.lines, (name, text)))
    return found


def in_context(path: str) -> bool:
    """Whether .dockerignore lets `path` through: the last pattern that matches decides."""
    kept = True
    for line in IGNORE.read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted = pattern.removeprefix("!")
        below = wanted == "*" or path == wanted or path.startswith(wanted + "/")
        anywhere = wanted.startswith("**/") and fnmatch.fnmatch("/" + path, "*" + wanted[2:] + "*")
        if below or anywhere:
            kept = pattern.startswith("!")
    return kept


def copied(stage: Stage) -> list[str]:
    """What a stage copies from the context."""
    found = [shlex.split(text) for name, text in stage.lines if name in ("COPY", "ADD")]
    return [word for words in found if not words[0].startswith("--from") for word in words[:-1]]


def test_the_default_target_is_the_one_with_tensorrt() -> None:
    assert list(stages())[-1] == "trt"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_unetrt_as_a_plain_user_and_tells_its_health(target: str) -> None:
    stage = stages()[target]
    assert stage.last("ENTRYPOINT") == '["unetrt"]'
    user = stage.last("USER")
    assert user.isdecimal()
    assert int(user) > 0
    assert "unetrt doctor" in stage.last("HEALTHCHECK")
    after = [name for name, _ in stage.lines][::-1]
    assert after.index("USER") < after.index("RUN"), "what runs last runs as that user"


@pytest.mark.parametrize("target", TARGETS)
def test_compilers_and_sources_stay_in_the_build_stages(target: str) -> None:
    stage = stages()[target]
    assert copied(stage) == []
    assert not any(word in text for _, text in stage.lines for word in ("apt-get", "pip "))
    assert stage.base == stages()[f"{target}-build"].base, "the environment is copied as it is"


@pytest.mark.parametrize("target", TARGETS)
def test_the_working_folder_belongs_to_who_works_in_it(target: str) -> None:
    """`docker run unetrt:cpu demo` without a mount; WORKDIR would make it root's."""
    lines = stages()[target].lines
    folder = stages()[target].last("WORKDIR")
    made = [i for i, (name, text) in enumerate(lines) if name == "RUN" and text.endswith(folder)]
    assert made
    assert "--owner=unetrt" in lines[made[0]][1]
    assert made[0] < lines.index(("USER", stages()[target].last("USER")))


def test_the_image_below_does_not_choose_our_versions() -> None:
    for stage in ("trt-build", "trt"):
        assert "PIP_CONSTRAINT=" in stages()[stage].last("ENV").split()


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_reports_to_nobody(target: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in stages()[target].last("ENV").split()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("extras", "wanted"), [("", ""), ("bands,ray", "[bands,ray]")])
def test_the_wheel_is_installed_with_the_extras_that_are_asked_for(
    target: str, extras: str, wanted: str, tmp_path: Path
) -> None:
    """The command of the stage itself, in the shell that runs it, with pip's words printed."""
    stage = stages()[f"{target}-build"]
    assert stage.last("ARG") == "EXTRAS="
    (folder := tmp_path / "with a space").mkdir()
    (wheel := folder / "unetrt-0.1.0-py3-none-any.whl").touch()
    command = next(t for n, t in stage.lines if n == "RUN" and "*.whl" in t)
    command = re.sub(r"--mount=\S+", "", command).replace("/dist/", f"{shlex.quote(str(folder))}/")
    command = command.replace("/opt/unetrt/bin/pip", "printf '%s\\n'")
    done = subprocess.run(
        ["sh", "-euc", command],
        env={**os.environ, "EXTRAS": extras},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{wheel}{wanted}" in done.stdout.splitlines()


def test_base_images_are_pinned() -> None:
    names = [text for name, text in instructions() if name == "ARG"]
    images = [text.split("=", 1)[1] for text in names if "_IMAGE=" in text]
    assert len(images) == 2
    assert not any(image.endswith("latest") or ":" not in image for image in images)


def test_every_install_goes_through_the_constraints() -> None:
    runs = [text for stage in stages().values() for name, text in stage.lines if name == "RUN"]
    installs = [text for text in runs if "pip install" in text]
    assert len(installs) == 3
    assert all("-c constraints.txt" in t or "-c /src/constraints.txt" in t for t in installs)


def test_what_is_copied_is_there_and_in_the_context() -> None:
    sources = [source for stage in stages().values() for source in copied(stage)]
    assert len(sources) > 10
    for source in sources:
        assert (ROOT / source).exists(), source
        assert in_context(source), source


def test_the_context_is_small() -> None:
    for name in (".git", ".venv", "tests/conftest.py", "docs/batch.md", "demo", "typings"):
        assert not in_context(name), name
    assert not in_context("bench/results/neu_seg-w16")
    assert not in_context("engine/__pycache__/open.cpython-312.pyc")
    assert in_context("engine/open.py")


def test_the_wheel_is_made_of_what_its_stage_copies(tmp_path: Path) -> None:
    """The command of the stage itself, in a folder that holds its context and no more."""
    stage = stages()["wheel"]
    for source in copied(stage):
        skip = shutil.ignore_patterns("__pycache__", "results")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=skip)
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    command = next(t for n, t in stage.lines if n == "RUN" and t.startswith("pip wheel"))
    words = [w.replace("/dist", str(tmp_path / "dist")) for w in shlex.split(command)]
    subprocess.run([sys.executable, "-m", *words, "--quiet"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "dist").glob("unetrt-*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    folders = ("contract", "training", "engine", "runtime", "export", "bench", "cli")
    assert found == {f"unetrt/{f}/{p.name}" for f in folders for p in (tmp_path / f).glob("*.py")}
