"""Flags that take a file or folder of this machine: an address is refused, and makes no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command

HERE = "s3://bucket/x"
DATA = ["--images", "i", "--masks", "m"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["predict", "-i", "a.png", "-o", HERE], "--output-dir DIR   takes addresses"),
        (["predict", "-i", "a.png", "-m", HERE], "a model is read from"),
        (["predict", "-i", "a.png", "-n", "--json", HERE], "--json and --trace write"),
        (["predict", "-i", "a.png", "-n", "--trace", HERE], "--json and --trace write"),
        (["evaluate", "m.pth", "--images", HERE, "--masks", "m"], "predict -i alone"),
        (["bench", "m.pth", "--images", "i", "--report", HERE], "a report is written"),
        (["bench", "m.pth", "--images", "i", "--compare", HERE], "a report is read"),
        (["build", "m.pth", "-o", HERE], "an engine is written to a folder"),
        (["build", "m.pth", "-o", "e", "--gate-images", HERE], "predict -i alone"),
        (["build", "m.pth", "-o", "e", "--timing-cache", HERE], "a timing cache is kept"),
        (["export", "m.pth", "-o", HERE], "export writes to a file"),
        (["convert", "m.pth", "-o", HERE], "a checkpoint is written"),
        (["refit", "e", HERE], "a model is read from"),
        (["inspect", HERE], "a model is read from"),
        (["demo", "--out", HERE], "the demo is written"),
        (["train", *DATA, "--out", HERE], "a run is written"),
        (["train", *DATA, "--load", HERE], "a model is read"),
        (["triton", "e", "-o", HERE], "a model repository is written"),
    ],
)
def test_an_address_is_no_path_of_this_machine(
    arguments: list[str],
    told: str,
    unetrt: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = unetrt(*arguments).whole_error
    assert told in error
    assert "of this machine\n" in error
    assert f"seen:     {HERE}\n" in error
    assert list(tmp_path.iterdir()) == []
