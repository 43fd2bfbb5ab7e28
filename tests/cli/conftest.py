"""The command line in this process, and a model of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a command."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """stderr of a wrong request: one message, nothing of Python in it."""
        assert self.status == 2, self
        assert "Traceback" not in self.err + self.out
        assert self.err.count("error:") == 1
        assert self.err.count("Hint:") == 1
        return self.err

    @property
    def whole_error(self) -> str:
        """What was seen, what was expected, and what helps."""
        for part in ("seen:", "expected:", "Hint:"):
            assert part in self.error, f"no {part} in {self.err}"
        return self.err


Command = Callable[..., Outcome]
CheckpointFile = Callable[..., Path]

NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.png"]
"""The masks of `pictures`."""

JOURNAL = ".unetrt/journal.jsonl"


def files_below(folder: Path) -> list[str]:
    """Without the journal."""
    files = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in files if not name.endswith(JOURNAL))


@pytest.fixture
def unetrt(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `unetrt …` and return its outcome."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a space in its name and four pictures of three sizes, one below another."""
    folder = tmp_path / "my pictures ü"
    for index, name in enumerate(["a.png", "b.png", "sub/c.png", "sub/d.bmp"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(steel(index, 40 + 8 * (index // 2), 48)[..., 0]).save(path)
    return folder


@pytest.fixture(scope="session")
def onnx_file(
    checkpoint_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(checkpoint_file()), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def engine_folder(onnx_file: Path) -> Path:
    folder = onnx_file.with_name("engine")
    assert main(["build", str(onnx_file), "-o", str(folder), "--backend", "onnxruntime"]) == 0
    return folder
