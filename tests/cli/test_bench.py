"""`unetrt bench`: its flags; the measurements themselves are tested in tests/bench."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.cli.bench import add_arguments, share
from unetrt.cli.main import main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slo", "p99"], "no such bound"),
        (["--compare", "none.json"], "no bench report"),
        (["--max-regression", "2"], "a share between 0 and 1"),
        (["--max-regression", "x%"], "a share between 0 and 1"),
        (["--row-timeout", "0"], "above 0"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_runs(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["bench", "none.pth", "--images", "none", *flags])
    except SystemExit as exit_:
        status = int(str(exit_.code))
    assert status == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Hint: " in told


def test_shares_are_numbers_or_percentages() -> None:
    assert share("5%") == share("0.05") == 0.05
    with pytest.raises(argparse.ArgumentTypeError):
        share("-1%")


def test_every_flag_has_a_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["m.pth", "--images", "x"])
    assert (args.masks, args.compare, args.slo, args.sweep, args.peers) == (
        None,
        None,
        None,
        False,
        False,
    )
    assert args.max_regression == 0.05


@pytest.mark.slow
def test_a_second_bench_is_compared_with_the_first(
    checkpoint_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "imgs"
    images.mkdir()
    for index in range(3):
        Image.fromarray(steel(index, 40, 56)[..., 0]).save(images / f"{index}.png")
    model = str(checkpoint_file())
    common = ["bench", model, model, "--images", str(images), "--seconds", "0.1", "--repeats", "2"]
    assert main([*common, "--report", str(tmp_path / "report")]) == 0
    (path,) = (tmp_path / "report").glob("*.json")
    told = json.loads(path.read_text())
    capsys.readouterr()
    assert main([*common, "--compare", str(path), "--max-regression", "95%"]) == 0
    assert "compared with" in capsys.readouterr().out
    for row in told["rows"]:
        for region in ("with_copies", "files_to_files"):
            row["result"][region] = [1e9]
    path.write_text(json.dumps(told))
    assert main([*common, "--compare", str(path), "--max-regression", "95%"]) == 1
    assert "regression past 95%" in capsys.readouterr().out
