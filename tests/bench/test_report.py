"""Tables and files of a made-up bench."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.conftest import row_result
from unetrt.bench.class_report import class_lines
from unetrt.bench.judge import ClassIou
from unetrt.bench.measure import WarmUp
from unetrt.bench.page import html_page
from unetrt.bench.peaks import Peaks
from unetrt.bench.plots import rates_svg
from unetrt.bench.readme import readme_block
from unetrt.bench.report import (
    context_lines,
    detail_lines,
    fastest_row,
    report_lines,
    stage_lines,
    sweep_lines,
    table_lines,
    warnings,
)
from unetrt.bench.report_files import report_stem, write_report
from unetrt.bench.result import Bench, Row
from unetrt.bench.slo import SloAnswer
from unetrt.bench.sweep import Sweep
from unetrt.contract.errors import UserError


def cells_of(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_lines_up_and_shows_no_speed_up_without_agreement(bench: Bench) -> None:
    lines = table_lines(bench)
    assert len({len(line) for line in lines}) == 1
    assert {line.count("|") for line in lines} == {7}
    assert set(lines[1]) == {"|", "-"}
    cells = cells_of(lines)
    name = "reference: loop fp32 on cpu"
    assert cells[2] == [name, "20 ± 10%", "–", "10 ± 10%", "1.00×", "100.0000%"]
    assert cells[3][2:] == ["–", "40 (1 pass)", "4.00× (3.64–4.44)", "99.9950%"]
    assert cells[4][4:] == ["agreement low", "50.0000%"]
    assert cells[5] == ["gone", "not run", "", "no such ¦ file", "", ""]
    assert cells[6] == ["peer: tool on openvino", "100", "", "", "ours is 0.80 of it", ""]
    assert cells[7] == ["peer: other on wrong", "not run", "", "", "not installed", ""]


def on_cuda(bench: Bench) -> Bench:
    """The same bench on a GPU, where copies cost something."""
    rows = tuple(
        replace(
            row,
            result=row.result
            and replace(row.result, device="NVIDIA X (cuda:0)", with_copies=[14.0, 16.0]),
        )
        for row in bench.rows
    )
    return replace(bench, rows=rows, machine={**bench.machine, "gpu": "NVIDIA X"}, peers=())


def test_what_a_gpu_makes_with_copies_stands_wherever_engine_only_does(
    bench: Bench, tmp_path: Path
) -> None:
    found = on_cuda(bench)
    head, _, first = cells_of(table_lines(found))[:3]
    assert dict(zip(head, first, strict=True))["engine with copies, images/s"] == "15 ± 7%"
    paths = write_report(found, tmp_path, "x")
    rows = list(csv.DictReader(paths[1].open()))
    assert [row["with_copies"] for row in rows] == ["15.0", "15.0", "15.0", ""]
    assert rates_svg(found).count('id="with-copies"') == 3
    assert "15 ± 7%" in paths[3].read_text()
    for language, column in (("en", "engine with copies, images/s"), ("zh", "引擎含拷贝")):
        block = readme_block(tmp_path, language)
        assert column in block
        assert "15 ± 7%" in block
    assert found.rows[0].result is not None
    bare = replace(found.rows[0], result=replace(found.rows[0].result, engine_only=[]))
    cells = cells_of(table_lines(replace(found, rows=(bare,))))[2]
    assert cells[1:3] == ["not measured", "15 ± 7%"]


def test_on_a_cpu_the_copies_are_none_and_readme_has_no_column_of_them(
    bench: Bench, tmp_path: Path
) -> None:
    assert rates_svg(bench).count('id="with-copies"') == 0
    assert "shown as –" in "\n".join(context_lines(bench))
    write_report(bench, tmp_path, "x")
    assert "copies" not in readme_block(tmp_path, "en")


def test_masks_that_could_not_be_compared_give_no_speed_up(bench: Bench) -> None:
    row = Row(name="odd", result=row_result("odd", [70]), reason="no speed-up: other classes")
    line = table_lines(replace(bench, rows=(bench.rows[0], row), peers=()))[3]
    assert "no speed-up: other classes" in line
    assert "×" not in line


def test_without_a_baseline_there_is_no_speed_up(bench: Bench) -> None:
    rows = (Row(name="reference", reason="out of memory"), bench.rows[1])
    assert "×" not in table_lines(replace(bench, rows=rows, peers=()))[3]


def test_a_known_truth_brings_a_column_of_scores_and_their_change(bench: Bench) -> None:
    rows = [
        replace(row, judgement=replace(row.judgement, miou=miou) if row.judgement else None)
        for row, miou in zip(bench.rows, (0.75, 0.74, None, None), strict=True)
    ]
    cells = cells_of(table_lines(replace(bench, rows=tuple(rows))))
    assert [line[-1] for line in cells[:1] + cells[2:5]] == [
        "foreground mIoU",
        "0.7500 (+0.0000)",
        "0.7400 (-0.0100)",
        "",
    ]


def test_details_give_the_share_of_the_peak(bench: Bench) -> None:
    cells = cells_of(detail_lines(bench))
    assert len(cells) == 2 + 3
    named = dict(zip(cells[0], cells[3], strict=True))
    assert named["TFLOP/s"] == "0.08"
    assert named["of peak"] == "8%"
    assert named["p50 / p95 / p99 of a batch, ms"] == "1 / 2 / 3 (40 × batch 1)"
    assert named["build / open / first batch, s"] == "3.00 / 0.50 / 0.25"
    assert named["host MiB"] == "100"
    assert named["lowest IoU to PyTorch's"] == "0.9990"


def test_the_stage_table_names_the_bottleneck_and_its_bounds(bench: Bench) -> None:
    assert fastest_row(bench) == bench.rows[1]
    text = "\n".join(stage_lines([bench.rows[1]]))
    assert "2 load threads" in text
    assert "0.0% of it is in no step" in text
    assert "cores 18; the pass reached 38.9% of that" in text
    assert "Bottleneck: engine; alone it allows 20 images/s" in text
    assert "cores 18" in text
    assert "The engine's threads had 95.0% of the cores' time, alone 99.0%" in text
    assert fastest_row(replace(bench, rows=bench.rows[:1])) is None


def test_the_context_says_what_the_times_leave_out(bench: Bench) -> None:
    text = "\n".join(context_lines(bench))
    assert "7 images, network input 100×90" in text
    assert "Maker X/1" in text
    assert "torch 2.13.0+cpu" in text
    assert "ov " not in text
    assert "no decode" in text
    assert "no opening of the model" in text
    assert "warm-up until" in text
    assert "fp32 1 Tops/s (a matrix product of 9)" in text


def test_a_machine_that_was_not_quiet_is_told(bench: Bench) -> None:
    assert warnings(bench) == ["reference: repeats differ by ±10%: the machine was not quiet"]
    restless = replace(row_result("x", [10, 10]), warm_up=WarmUp(seconds=2.0, stable=False))
    machine = {**bench.machine, "load before": "99.5"}
    found = warnings(replace(bench, rows=(Row(name="x", result=restless),), machine=machine))
    assert found == [
        "others were running before the bench: load 99.5",
        "x: not stable after 2.0 s of warm-up",
    ]


def test_the_sweep_marks_one_knee(sweep: Sweep) -> None:
    lines = sweep_lines(sweep)
    marked = cells_of([line for line in lines if "← knee" in line])
    assert [cells[:4] for cells in marked] == [
        ["200×180", "1", "2", "97"],
        ["100×90", "1", "2", "390"],
    ]
    refusing = replace(sweep, refused={"400×360": "the plan was not built for this shape"})
    assert sweep_lines(refusing)[-1].startswith("400×360 does not run: the plan was not")
    assert "given up" in sweep_lines(replace(sweep, points=(), reason="given up"))[0]


def test_the_report_is_four_files_named_by_what_was_measured(bench: Bench, tmp_path: Path) -> None:
    paths = write_report(bench, tmp_path / "new" / "report", "unetrt bench a.pth")
    stem = "bench_maker-x-1-2-cores_fp32_torch-2.13.0_openvino-2026.4_100x90_batch-1"
    assert [path.name for path in paths] == [f"{stem}.{e}" for e in ("json", "csv", "md", "html")]
    told = json.loads(paths[0].read_text())
    assert told["command"] == "unetrt bench a.pth"
    assert [row["name"] for row in told["rows"]] == ["reference", "openvino", "wrong", "gone"]
    assert told["rows"][0]["result"]["files_to_files"] == [9, 10, 11]
    assert told["regions"] == bench.regions
    assert "samples" not in told
    text = paths[2].read_text()
    assert "`unetrt bench a.pth`" in text
    assert all(line in text for line in (*table_lines(bench), *detail_lines(bench)))
    kept = {path: path.read_bytes() for path in paths}
    others = write_report(bench, tmp_path / "new" / "report", "unetrt bench b.pth")
    assert [path.stem for path in others] == [f"{stem}-2"] * 4
    assert kept == {path: path.read_bytes() for path in paths}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(bench, tmp_path / "file" / "report", "x")


def test_the_csv_holds_plain_numbers_and_no_speed_up_for_wrong_masks(
    bench: Bench, tmp_path: Path
) -> None:
    path = write_report(bench, tmp_path, "x")[1]
    rows = list(csv.DictReader(path.open()))
    assert [row["name"] for row in rows] == ["reference", "openvino", "wrong", "gone"]
    assert [row["speed_up"] for row in rows] == ["1", "4.0", "", ""]
    assert [row["speed_up_low"][:4] for row in rows] == ["1", "3.63", "", ""]
    assert [row["speed_up_high"][:4] for row in rows] == ["1", "4.44", "", ""]
    assert float(rows[1]["of_peak"]) == pytest.approx(0.08)
    assert rows[3]["engine_only"] == ""


def test_each_class_is_shown_with_its_change(bench: Bench, tmp_path: Path) -> None:
    truths: list[ClassIou | None] = [{"a": 0.75, "b": None}, {"a": 0.73, "b": None}, None, None]
    rows = tuple(
        replace(row, judgement=replace(row.judgement, truth_iou=true) if row.judgement else None)
        for row, true in zip(bench.rows, truths, strict=True)
    )
    lines = class_lines(bench.rows)
    assert cells_of(lines)[5] == ["openvino", "0.9990", "absent"]
    assert len(lines) == 6, "without a truth there is no other table"
    text = "\n".join(report_lines(replace(bench, rows=rows), "x"))
    assert "| openvino  | 0.7300 (-0.0200) | absent |" in text
    assert "| reference | 0.7500 (+0.0000) | absent |" in text


def test_notes_and_what_was_measured_twice_are_told(bench: Bench) -> None:
    result = row_result("loop", [9, 10, 11])
    first = replace(bench.rows[0], result=replace(result, again=1))
    peaks = Peaks(reason="the probe was given up")
    told = replace(bench, rows=(first,), notes=("interrupted",), peaks=peaks)
    text = "\n".join(context_lines(told))
    assert "files to files in 3 processes, before the other rows" in text
    assert warnings(told)[:2] == ["interrupted", "no measured peak: the probe was given up"]
    busy = replace(first, result=replace(result, others=0.2))
    assert any("others kept 20%" in line for line in warnings(replace(bench, rows=(busy,))))


def test_a_report_of_a_gpu_is_named_by_it(bench: Bench, tmp_path: Path) -> None:
    on_cuda = replace(row_result("loop", [9, 10]), device="NVIDIA H100 80GB HBM3 (cuda:0)")
    machine = {**bench.machine, "gpu": "2 × NVIDIA H100 80GB HBM3", "driver": "580.65"}
    found = replace(
        bench, rows=(replace(bench.rows[0], result=on_cuda),), machine=machine, peers=()
    )
    assert report_stem(found).startswith("bench_nvidia-h100-80gb-hbm3_fp32_")
    path = write_report(found, tmp_path / "results", "x")[0]
    assert json.loads(path.read_text())["machine"]["driver"] == "580.65"
    block = readme_block(tmp_path / "results", "en")
    assert "2 × NVIDIA H100 80GB HBM3; `x`" in block
    assert "Maker X" not in block
    assert report_stem(replace(bench, machine=machine)).startswith("bench_maker-x-1-2-cores_")


VOID = ("meta", "img")


class Page(HTMLParser):
    """Collects tags and what they refer to; every opened tag must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        names = ("src", "href", "xlink:href")
        self.links += [value for name, value in attrs if name in names and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(bench: Bench, sweep: Sweep) -> None:
    slo = SloAnswer(bound="p99 ≤ 20 ms", met=True, lines=("p99 ≤ 20 ms: 97 images/s",))
    text = html_page(replace(bench, sweep=sweep, slo=slo), "unetrt bench <a> & b")
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.tags.count("svg") == text.count('<svg role="img" aria-label=') == 4
    assert page.tags.count("img") == text.count('<img alt="picture 1: image"') == 1
    assert page.tags.count("table") == 2 + 1 + 3 + 1
    assert "p99 ≤ 20 ms: 97 images/s" in page.text
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.links
    assert all(link.startswith(("#", "data:image/png")) for link in page.links)
    assert "unetrt bench <a> & b" in page.text
    assert "agreement low" in page.text
    assert "← knee" in page.text
    for start in [i for i in range(len(text)) if text.startswith("<svg", i)]:
        ElementTree.fromstring(text[start : text.index("</svg>", start) + len("</svg>")])


def test_the_page_of_a_bench_without_numbers_is_a_page(bench: Bench) -> None:
    rows = (Row(name="reference", reason="out of memory"),)
    empty = replace(bench, rows=rows, peers=(), samples=None)
    page = Page()
    page.feed(html_page(empty, "x"))
    assert "svg" not in page.tags
    assert report_stem(empty).endswith("_none_torch-2.13.0_0x0_batch-0")
