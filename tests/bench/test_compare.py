"""Two reports compared, README's tables, the peers' output, the sweep and its bound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import row_result
from tests.conftest import ROOT
from unetrt.bench.compare import Change, compare_lines, compare_reports, read_report
from unetrt.bench.measure import Latency
from unetrt.bench.readme import BEGIN, END, main, readme_block, readme_with_block
from unetrt.bench.report import detail_lines, sweep_lines
from unetrt.bench.report_files import write_report
from unetrt.bench.result import Bench
from unetrt.bench.slo import answer_slo, best_under, slo_from_text
from unetrt.bench.sweep import Sweep, sweep_from_dict
from unetrt.contract.errors import UserError


def report_of(bench: Bench, folder: Path) -> Path:
    return write_report(bench, folder, "unetrt bench a.pth")[0]


def with_rates(bench: Bench, rates: list[float]) -> Bench:
    """The same bench with other numbers of the second row."""
    row = replace(bench.rows[1], result=row_result("openvino", rates))
    return replace(bench, rows=(bench.rows[0], row, *bench.rows[2:]))


def test_a_bench_compared_with_itself_has_not_changed(bench: Bench, tmp_path: Path) -> None:
    before = read_report(report_of(bench, tmp_path))
    lines, worse = compare_lines(before, bench, 0.0)
    assert not worse
    assert len(lines) == 2 + 4
    assert [line.split("|")[-2].strip() for line in lines[2:]] == [
        *["within the noise"] * 2,
        *["equal, by a single pass"] * 2,
    ]
    assert "unknown" in lines[4], "the noise of one pass is not known"
    assert {change.row for change in compare_reports(before, bench)} == {"reference", "openvino"}


@pytest.mark.parametrize(
    ("rates", "most", "verdict", "worse"),
    [
        ([30.0], 0.05, "regression past 5%", True),
        ([30.0], 0.5, "slower", False),
        ([60.0], 0.05, "faster, by a single pass", False),
        ([39.0], 0.05, "slower, by a single pass", False),
        ([20.0, 36.0, 44.0], 0.05, "unknown", True),
        ([20.0, 100.0, 190.0], 0.6, "faster", False),
    ],
)
def test_a_change_counts_beyond_the_noise(
    rates: list[float], most: float, verdict: str, worse: bool, bench: Bench, tmp_path: Path
) -> None:
    before = read_report(report_of(bench, tmp_path))
    lines, found = compare_lines(before, with_rates(bench, rates), most)
    assert found == worse
    assert all(verdict in line for line in lines if line.startswith("| openvino"))


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ((10.0, 100000.0, 200000.0), (30.0, 42.5, 60.0), "unknown"),
        ((90000.0, 100000.0, 290000.0), (30.0, 42.5, 60.0), "regression past 5%"),
        ((98.0, 100.0, 102.0), (80.0, 82.0, 99.0), "regression past 5%"),
        ((99.0, 100.0, 101.0), (96.5, 97.0, 97.5), "slower"),
        ((98.0, 100.0, 102.0), (80.0, 82.0, 84.0), "regression past 5%"),
        ((98.0, 100.0, 102.0), (99.0, 101.0, 102.0), "within the noise"),
        ((10.0, 20.0, 30.0), (40.0, 50.0, 90.0), "faster"),
        ((100.0,), (99.0, 101.0), "equal, by a single pass"),
    ],
)
def test_no_spread_hides_a_row_that_is_a_thousandth_of_itself(
    then: tuple[float, ...], now: tuple[float, ...], verdict: str
) -> None:
    change = Change(row="x", region="engine", before=then, now=now)
    assert change.verdict(0.05).startswith(verdict)
    assert change.is_unknown(0.05) == (verdict == "unknown")


def test_a_slower_network_does_not_hide_behind_its_copies(bench: Bench, tmp_path: Path) -> None:
    """Copies and files bound the rate before and now; the network alone lost half."""

    def with_network(rates: list[float]) -> Bench:
        result = replace(row_result("openvino", [40.0, 40.0]), engine_only=rates)
        return replace(bench, rows=(bench.rows[0], replace(bench.rows[1], result=result)))

    before = read_report(report_of(with_network([200.0, 202.0]), tmp_path))
    lines, worse = compare_lines(before, with_network([100.0, 101.0]), 0.05)
    assert worse
    (line,) = [line for line in lines if "regression past 5%" in line]
    assert "| engine only" in line
    lines, worse = compare_lines(before, with_network([200.0, 202.0]), 0.05)
    assert not worse
    assert sum("engine with copies" in line for line in lines) == 1, "one number on the CPU's row"
    lines, worse = compare_lines(before, with_network([]), 0.05)
    assert worse, "it is not measured any more"
    unmeasured = read_report(report_of(with_network([]), tmp_path / "other"))
    changes = compare_reports(unmeasured, with_network([200.0]))
    assert [c.region for c in changes if c.row == "openvino"] == [
        "engine with copies",
        "files to files",
    ]


def test_the_speed_of_the_reference_loop_is_no_regression(bench: Bench, tmp_path: Path) -> None:
    """A small network in PyTorch runs at one of several speeds, which a process keeps."""

    def with_baseline(rates: list[float]) -> Bench:
        result = replace(row_result("reference", rates), again=3)
        return replace(bench, rows=(replace(bench.rows[0], result=result), *bench.rows[1:]))

    processes = [46.551, 46.236, 80.747, 59.91]
    before = read_report(report_of(with_baseline(processes), tmp_path))
    lines, failed = compare_lines(before, with_baseline(processes), 0.05)
    assert not failed, "a report and itself"
    assert "within the noise" in lines[2]
    lines, failed = compare_lines(before, with_baseline([5.0, 5.1]), 0.05)
    assert not failed
    assert "| reference" in lines[2]
    assert "slower" in lines[2]
    lost = replace(bench, rows=(replace(bench.rows[0], trusted=False), *bench.rows[1:]))
    lines, failed = compare_lines(before, lost, 0.05)
    assert failed
    assert "lost" in lines[2]


def test_a_comparison_of_nothing_is_no_pass(bench: Bench, tmp_path: Path) -> None:
    untrusted = replace(bench, rows=tuple(replace(row, trusted=False) for row in bench.rows))
    before = read_report(report_of(untrusted, tmp_path))
    lines, failed = compare_lines(before, bench, 0.05)
    assert failed
    assert "nothing to compare" in lines[0]


def test_a_row_that_lost_its_trust_is_a_regression(bench: Bench, tmp_path: Path) -> None:
    before = read_report(report_of(bench, tmp_path))
    now = replace(bench, rows=(bench.rows[0], replace(bench.rows[1], trusted=False)))
    lines, worse = compare_lines(before, now, 0.9)
    assert worse
    assert sum("lost" in line for line in lines) == 2


def test_benches_that_differ_in_more_than_time_say_so(bench: Bench, tmp_path: Path) -> None:
    before = read_report(report_of(bench, tmp_path))
    now = replace(bench, images=8, machine={"processor": "Z"}, versions={"torch": "3"})
    text = "\n".join(compare_lines(before, now, 0.05)[0])
    assert "images: 7 before, 8 now" in text
    assert "processor: Maker X/1, 2 cores before, Z now" in text
    assert "torch: 2.13.0+cpu before, 3 now" in text
    assert "network input" not in text
    result = replace(row_result("openvino", [40.0]), input_size=(50, 45), batch=8, precision="bf16")
    rows = (bench.rows[0], replace(bench.rows[1], result=result))
    text = "\n".join(compare_lines(before, replace(now, rows=rows, seconds=9), 0.05)[0])
    assert "differs: seconds: none before, 9 now" in text
    assert "differs: network input: 100×90 before, 50×45 now (openvino)" in text
    assert "differs: batch: 1 before, 8 now (openvino)" in text
    assert "differs: precision: fp32 before, bf16 now (openvino)" in text


def test_what_is_no_report_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="no bench report"):
        read_report(path)
    for text in ("no json", "[]", '{"rows": []}'):
        path.write_text(text)
        with pytest.raises(UserError):
            read_report(path)
    whole = report_of(bench, tmp_path).read_text()
    for damage in (
        lambda raw: raw["rows"][0]["result"].pop("with_copies"),
        lambda raw: raw["rows"][0]["result"].pop("latency"),
        lambda raw: raw["rows"][0]["result"].update(files_to_files=[0]),
        lambda raw: raw["rows"][0]["result"].update(files_to_files=["x"]),
        lambda raw: raw["rows"][0].pop("trusted"),
        lambda raw: raw["rows"].append(None),
        lambda raw: raw["rows"].append({"name": 7}),
        lambda raw: raw.update(machine=[]),
        lambda raw: raw.pop("versions"),
    ):
        old = json.loads(whole)
        damage(old)
        path.write_text(json.dumps(old))
        with pytest.raises(UserError, match="cannot be compared with"):
            read_report(path)


def test_readme_is_written_from_the_results_and_checked(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    report_of(bench, results / "cpu")
    report_of(bench, results / "zen4" / "cpu")
    readmes = [tmp_path / "README.md", tmp_path / "README.zh-CN.md"]
    for path in readmes:
        path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    arguments = [*map(str, readmes), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert "old" in readmes[0].read_text()
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    english, chinese = (path.read_text(encoding="utf-8") for path in readmes)
    assert english.startswith("before\n")
    assert english.endswith("after\n")
    assert "4.00×" in english
    assert english.count("`unetrt bench a.pth`") == 1, "README has a link to the others"
    assert "9.00×" not in english, "the row whose masks are wrong has no speed-up"
    assert "引擎" in chinese
    assert "4.00×" in chinese
    readmes[0].write_text("no markers")
    assert main(arguments) == 2
    assert "no markers" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_our_readme_holds_what_was_measured(name: str, language: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    results = ROOT / "bench" / "results"
    if BEGIN not in text or not results.is_dir():
        pytest.skip("no measured results are committed yet")
    wanted = readme_with_block(text, readme_block(results, language))
    assert text == wanted, f"python -m unetrt.bench.readme {name}   writes it again"


def test_the_knee_is_the_first_that_is_nearly_as_fast(sweep: Sweep) -> None:
    assert sweep.sizes == [(200, 180), (100, 90)]
    assert sweep.knee((200, 180)) == sweep.points[1]
    assert sweep.knee((100, 90)) == sweep.points[4]
    assert sweep.knee((9, 9)) is None
    raw = json.loads(json.dumps({**vars(sweep), "points": [p_dict(p) for p in sweep.points]}))
    assert sweep_from_dict(raw) == sweep


def p_dict(point: object) -> dict[str, object]:
    raw = dict(vars(point))
    return {**raw, "latency": vars(raw["latency"])}


def test_a_bound_is_met_by_flags_that_exist(sweep: Sweep) -> None:
    assert best_under(sweep, slo_from_text("p99=20ms")) == sweep.points[1]
    assert best_under(sweep, slo_from_text("p99=9ms")) is None
    assert best_under(sweep, slo_from_text("p99=0.014s")) == sweep.points[2]
    assert best_under(sweep, slo_from_text("p50=60ms")) == sweep.points[3]
    answer = answer_slo(sweep, slo_from_text("p99=20ms"))
    assert answer.met
    assert "97 images/s" in answer.lines[0]
    assert "unetrt predict -m engine --batch 1 --slots 2 -i IMAGES" in answer.lines[-1]
    assert len(answer.lines) == 2, "an engine that is there is not built again"
    built = replace(sweep, build="unetrt build a.pth -o new", target="new", flags="--device cpu")
    lines = answer_slo(replace(built, images="my imgs"), slo_from_text("p99=20ms")).lines
    assert lines[1].strip() == built.build
    assert "-m new --batch 1 --slots 2 --device cpu -i 'my imgs'" in lines[-1]
    lines = answer_slo(replace(built, plan=True), slo_from_text("p50=60ms")).lines
    assert lines[1].endswith("-o new --batch 1,4,4")


def test_a_bound_that_is_not_met_says_what_is_nearest(sweep: Sweep) -> None:
    missed = answer_slo(sweep, slo_from_text("p99=1ms"))
    assert not missed.met
    assert missed.lines == (
        "p99 ≤ 1 ms: no setting meets it; the lowest is p99 10 ms over 200 batches, at batch 1, "
        "slots 1",
    )
    nothing = answer_slo(replace(sweep, points=()), slo_from_text("p50=1s"))
    assert "nothing was swept" in nothing.lines[0]
    assert not nothing.met
    assert not answer_slo(None, slo_from_text("p50=1s")).met
    cut = answer_slo(None, slo_from_text("p50=1s"), interrupted=True)
    assert cut.lines == ("p50 ≤ 1000 ms: the bench was interrupted before it had swept",)
    assert not cut.met


def test_large_numbers_are_written_out(sweep: Sweep, bench: Bench) -> None:
    """Seconds of a slow network, and images/s of a fast one: no 4.28e+03."""
    slow = Latency(p50=4280.0, p95=4640.0, p99=4700.0, count=200)
    point = replace(sweep.points[0], rate=1234.5, latency=slow)
    swept = replace(sweep, points=(point,))
    answer = answer_slo(swept, slo_from_text("p99=5s")).lines[0]
    assert answer.startswith("p99 ≤ 5000 ms: 1234 images/s, p99 4700 ms over 200 batches")
    assert any("| 4280" in line and "| 4700" in line for line in sweep_lines(swept))
    first = bench.rows[0]
    assert first.result is not None
    row = replace(first, result=replace(first.result, latency=slow))
    told = detail_lines(replace(bench, rows=(row,)))
    assert "4280 / 4640 / 4700 (200 × batch 1)" in told[2]


def test_a_p99_of_few_batches_is_the_slowest_of_them(sweep: Sweep) -> None:
    few = replace(sweep.points[0].latency, count=40, slowest=30.0)
    thin = replace(sweep, points=(replace(sweep.points[0], latency=few),))
    assert best_under(thin, slo_from_text("p99=20ms")) is None
    assert best_under(thin, slo_from_text("p95=20ms")) is not None
    (line, *_) = answer_slo(thin, slo_from_text("p99=40ms")).lines
    assert "30 ms, the slowest of 40 batches (of fewer than 100 a p99 is not believed)" in line


@pytest.mark.parametrize("text", ["p99", "p98=1ms", "p99=1", "p99=0ms", "p99=-1ms", "99=1ms"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no such bound"):
        slo_from_text(text)
