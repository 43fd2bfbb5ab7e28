"""A report's files: what is measured is not lost to a plot, a name or a version's package."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import row_result
from unetrt.bench import report_files, table
from unetrt.bench.page import html_page
from unetrt.bench.report_files import GrowingReport, report_stem, write_report
from unetrt.bench.result import Bench


def test_numbers_are_written_before_a_plot_can_fail(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise RuntimeError("no font")

    monkeypatch.setattr(report_files, "html_page", fails)
    monkeypatch.setattr(report_files, "report_lines", fails)
    with pytest.raises(RuntimeError, match="no font"):
        write_report(bench, tmp_path, "x")
    (told,) = tmp_path.glob("*.json")
    assert len(json.loads(told.read_text())["rows"]) == 4
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".csv", ".json"]


def test_a_report_grows_and_the_whole_one_takes_its_place(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bench goes on where a report of the rows so far fails, whatever fails in it."""
    report, first = GrowingReport(tmp_path, "x"), replace(bench, rows=bench.rows[:1], peers=())
    report.write(first)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"unfinished.{suffix}" for suffix in ("json", "csv", "md", "html")
    }
    monkeypatch.setattr(report_files, "html_page", lambda *_: 1 / 0)
    report.write(bench)
    assert "no report of the rows so far: division by zero" in caplog.text
    assert len(json.loads((tmp_path / "unfinished.json").read_text())["rows"]) == 4
    monkeypatch.undo()
    paths = report.finish(bench)
    assert set(paths) == set(tmp_path.iterdir())
    assert paths[0].stem == report_stem(bench)
    assert GrowingReport(None, "x").finish(bench) == []


def test_a_models_name_may_begin_as_a_table_does(bench: Bench) -> None:
    rows = tuple(replace(row, name=f"|{row.name}") for row in bench.rows)
    text = html_page(replace(bench, rows=rows, peers=()), "x")
    assert "<p>|openvino: where the time of files to files goes</p>" in text
    assert text.count("<table>") == html_page(replace(bench, peers=()), "x").count("<table>")


def test_versions_are_those_of_the_packages_that_are_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = {"tensorrt-cu12": "10.14", "tensorrt-rtx-cu13": "1.7", "onnxruntime-gpu": "1.31"}

    def package_version(*names: str) -> str:
        return next((wheels[name] for name in names if name in wheels), "")

    monkeypatch.setattr(table, "package_version", package_version)
    found = table._versions()
    assert {name: version for name, version in found.items() if version} == {
        "tensorrt": "10.14",
        "tensorrt-rtx": "1.7",
        "onnxruntime": "1.31",
    }
    for name, version in (("tensorrt", "10.14"), ("tensorrt-rtx", "1.7")):
        rows = (replace(bench.rows[1], result=row_result(name, [9.0])),)
        assert f"_fp32_{name}-{version}_" in report_stem(
            replace(bench, rows=rows, versions=found)
        ), "its own runtime's and no other's"
