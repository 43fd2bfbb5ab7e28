"""`unetrt bench`: its flags; the measurements themselves are tested in tests/bench."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.bench.conftest import row_result
from tests.conftest import steel
from unetrt.bench.result import Bench, Row
from unetrt.cli.bench import _most_from_args, add_arguments, sizes
from unetrt.cli.build import blocks, size_range
from unetrt.cli.main import main
from unetrt.cli.shared import share
from unetrt.contract.errors import UserError
from unetrt.contract.modules import INSTALL
from unetrt.engine import extras


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "imgs"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(steel(index, 40, 56)[..., 0]).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slo", "p99"], "no such bound"),
        (["--compare", "none.json"], "no bench report"),
        (["--max-regression", "2"], "a share from 0 to 1"),
        (["--max-regression", "x%"], "a share from 0 to 1"),
        (["--sizes", "256"], "as 200x300"),
        (["--report", __file__], "is a file"),
        (["--report", f"{__file__}/report"], "is a file"),
        (["--report", "n" * 300], "File name too long"),
        (["--report", "/proc/report"], "a folder that takes files"),
        (["--max-regression", "5%"], "a bound of --compare"),
        (["--row-timeout", "0"], "above 0"),
        (["--bit-depth", "7"], "--bit-depth"),
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
    assert share("100%") == share("1") == 1
    with pytest.raises(argparse.ArgumentTypeError):
        share("-1%")


def test_sizes_are_written_one_way_for_every_verb() -> None:
    assert sizes("256X320,8x9") == ((256, 320), (8, 9))
    assert size_range("256X320..512x640") == ((256, 320), (512, 640))
    for text in ("0x8", "8", "8x", "8x9x10"):
        with pytest.raises(argparse.ArgumentTypeError):
            sizes(text)


def test_the_same_blocks_are_one_request() -> None:
    assert blocks("up2,outc") == blocks("outc,up2,outc") == ("outc", "up2")
    assert (blocks("auto"), blocks("none")) == (None, ())


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
    assert args.max_regression is None
    assert _most_from_args(args) == 0.05


@pytest.mark.slow
def test_a_second_bench_is_compared_with_the_first(
    checkpoint_file: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unetrt.bench.compare.WIDE", float("inf"))  # the machine may be busy
    model = str(checkpoint_file())
    common = ["bench", model, model, "--images", str(images), "--seconds", "0.1", "--repeats", "2"]
    assert main([*common, "--report", str(tmp_path / "report")]) == 0
    (path,) = (tmp_path / "report").glob("*.json")
    told = json.loads(path.read_text())
    capsys.readouterr()
    assert main([*common, "--compare", str(path), "--max-regression", "99.9%"]) == 0
    assert "compared with" in capsys.readouterr().out
    for row in told["rows"]:
        for region in ("engine_only", "with_copies", "files_to_files"):
            row["result"][region] = [1e9]
    path.write_text(json.dumps(told))
    assert main([*common, "--compare", str(path), "--max-regression", "99.9%"]) == 1
    assert "regression past 99.9%" in capsys.readouterr().out


def test_a_report_of_another_form_is_refused_before_anything_runs(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "x", "trusted": True, "reason": "", "agreement": 1.0}
    rows = [{**row, "result": {"engine_only": [1.0], "with_copies": [1.0]}}]
    raw = {"command": "x", "rows": rows, "machine": {}, "versions": {}, "images": 1, "seconds": 1}
    old = tmp_path / "old.json"
    old.write_text(json.dumps(raw))
    status = main(["bench", "none.pth", "--images", str(images), "--compare", str(old)])
    told = capsys.readouterr().err
    assert status == 2
    assert "cannot be compared with" in told
    assert "files_to_files of row 1" in told
    assert "bench: measure" not in told, "no row has run"


def made_up(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    def measured(models: object, options: object, after_row: Callable[[Bench], None]) -> Bench:
        after_row(bench)
        return bench

    monkeypatch.setattr("unetrt.bench.table.bench_models", measured)


def a_bench() -> Bench:
    row = Row(name="reference", result=row_result("loop", [9.0, 10.0]), trusted=True, agreement=1.0)
    return Bench(rows=(row,), images=3, machine={"processor": "X"}, versions={"torch": "2"})


def test_the_report_is_written_before_anything_is_compared(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, a_bench())
    report = tmp_path / "report"
    common = ["bench", "m.pth", "--images", str(images), "--report", str(report)]
    assert main(common) == 0
    (path,) = report.glob("*.json")
    old = tmp_path / "old.json"
    path.rename(old)

    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("unetrt.bench.compare.compare_lines", fails)
    with pytest.raises(RuntimeError):
        main([*common, "--compare", str(old)])
    assert len(list(report.glob("*.json"))) == 1


def test_the_table_is_printed_where_the_report_cannot_be_written(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up(monkeypatch, a_bench())
    common = ["bench", "m.pth", "--images", str(images)]
    assert main([*common, "--report", str(tmp_path / "old")]) == 0
    (old,) = (tmp_path / "old").glob("*.json")
    table = capsys.readouterr().out.partition("report: ")[0]

    def full(*_: object) -> None:
        raise UserError("cannot write the report to r", seen="No space left on device")

    monkeypatch.setattr("unetrt.bench.report_files.write_report", full)
    arguments = ["--report", str(tmp_path / "r"), "--compare", str(old)]
    assert main([*common, *arguments]) == 2
    told = capsys.readouterr()
    assert told.out.startswith(table)
    assert f"compared with {old}" in told.out
    assert "No space left on device" in told.err


def test_an_unmet_bound_is_status_1_and_stands_in_the_report(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up(monkeypatch, a_bench())
    report = tmp_path / "report"
    common = ["bench", "m.pth", "--images", str(images), "--report", str(report)]
    assert main([*common, "--slo", "p99=1ms"]) == 1
    told = "p99 ≤ 1 ms: no engine with trusted masks to sweep"
    assert told in capsys.readouterr().out
    for suffix in ("md", "html", "json"):
        (path,) = report.glob(f"*.{suffix}")
        text = path.read_text(encoding="utf-8")
        assert told in (json.loads(text)["slo"]["lines"] if suffix == "json" else text)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_is_cut_reports_what_it_has_without_a_traceback(
    number: signal.Signals, checkpoint_file: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    """Ctrl-C goes to all processes of the terminal: here to the group of the bench."""
    model, report = str(checkpoint_file()), tmp_path / "report"
    command = [sys.executable, "-m", "unetrt.cli", "bench", model, model, "--images", str(images)]
    command += ["--seconds", "0.01", "--repeats", "1", "--report", str(report), "--device", "cpu"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as child:
        assert child.stderr is not None
        seen = ""
        while f"bench: {model}" not in seen:
            line = child.stderr.readline()
            assert line, seen
            seen += line
        os.killpg(child.pid, number)
        out, err = child.communicate(timeout=300)
    assert "Traceback" not in seen + err
    (path,) = report.glob("*.json")
    if number == signal.SIGKILL:
        assert path.stem == "unfinished"
    else:
        assert child.returncode == 130, err
        assert path.stem.startswith("bench_")
        assert "one image at a time" in out, "the row that was finished"
        assert "warning: the bench was interrupted" in out
    assert json.loads(path.read_text())["interrupted"]
    assert "the bench was interrupted" in path.with_suffix(".md").read_text()
    rows = json.loads(path.read_text())["rows"]
    assert [row["reason"] for row in rows] == ["", "interrupted", "interrupted"]


def doctor(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["doctor"]) == 0
    return capsys.readouterr().out


def test_doctor_names_what_the_parts_need_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(extras, "cuda_devices", lambda: 0)
    told = doctor(capsys)
    for name in ("ray", "triton", "wandb", "NVML", "pycuda", "C++ compiler"):
        assert f"\n{name} " in told
    for command in ("unetrt[ray]", "unetrt[triton]", "unetrt[wandb]", "apt-get install g++"):
        assert command in told
    assert "unetrt[trt]" not in told, "its installation fails without a GPU"
    monkeypatch.setattr(extras, "cuda_devices", lambda: 1)
    monkeypatch.setattr(extras, "GPU_NAMES", (lambda: ["NVIDIA X"],))
    monkeypatch.setattr(extras, "_driver", lambda: "580.65")
    told = doctor(capsys)
    assert "gpu         NVIDIA X\ndriver      580.65\n" in told
    assert INSTALL["pynvml"] in told
    assert INSTALL["pycuda.driver"] in told
