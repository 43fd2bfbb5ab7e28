"""Two reports compared, README's tables, the peers' output, the sweep and its bound."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import row_result
from tests.conftest import ROOT
from unetrt.bench import peers
from unetrt.bench.compare import compare_lines, compare_reports, read_report
from unetrt.bench.peers import measure_peer, rate_from_output
from unetrt.bench.readme import BEGIN, END, main, readme_block, readme_with_block
from unetrt.bench.report_files import write_report
from unetrt.bench.result import Bench
from unetrt.bench.rows import baseline_checkpoint, entries_from_models
from unetrt.bench.slo import best_under, slo_from_text, slo_lines
from unetrt.bench.sweep import Sweep, sweep_from_dict
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import MANIFEST, Manifest


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
    assert all("within the noise" in line for line in lines[2:])
    assert {change.row for change in compare_reports(before, bench)} == {"reference", "openvino"}


@pytest.mark.parametrize(
    ("rates", "most", "verdict", "worse"),
    [
        ([30.0], 0.05, "regression past 5%", True),
        ([30.0], 0.5, "slower", False),
        ([60.0], 0.05, "faster", False),
        ([20.0, 36.0, 44.0], 0.05, "within the noise", False),
    ],
)
def test_a_change_counts_beyond_the_noise(
    rates: list[float], most: float, verdict: str, worse: bool, bench: Bench, tmp_path: Path
) -> None:
    before = read_report(report_of(bench, tmp_path))
    lines, found = compare_lines(before, with_rates(bench, rates), most)
    assert found == worse
    assert all(verdict in line for line in lines if line.startswith("| openvino"))


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


def test_what_is_no_report_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="no bench report"):
        read_report(path)
    for text in ("no json", "[]", '{"rows": []}'):
        path.write_text(text)
        with pytest.raises(UserError):
            read_report(path)
    old = json.loads(report_of(bench, tmp_path).read_text())
    del old["rows"][0]["result"]["with_copies"]
    with pytest.raises(UserError, match="older bench"):
        compare_lines(old, bench, 0.05)


def test_readme_is_written_from_the_results_and_checked(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    report_of(bench, results / "cpu")
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
    assert "`unetrt bench a.pth`" in english
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


def test_the_peers_numbers_are_read_from_what_they_print() -> None:
    assert rate_from_output("[ INFO ] Throughput:   1050.52 FPS\n", 8) == 1050.52
    assert rate_from_output("[I] Throughput: 12.5 qps", 8) == 100
    assert rate_from_output("no number", 8) is None


def engine_directory(folder: Path, backend: str, precision: str) -> Path:
    folder.mkdir()
    manifest = Manifest(
        spec=ModelSpec(),
        backend=backend,
        backend_version="1",
        precision=precision,
        model="model.x",
        files={"model.x": "0" * 64},
        source={"name": "a", "sha256": "0"},
        gate={"verdict": "passed", "min_agreement": 0.9, "agreement": 1.0, "inputs": "golden"},
    )
    (folder / "model.x").touch()
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def test_a_peer_runs_on_the_same_file_shape_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = engine_directory(tmp_path / "engine", "openvino", "bf16")
    code = "import sys; print('Throughput: 42 FPS', file=sys.stdout)"
    monkeypatch.setattr(peers, "BENCHMARK_APP", code)
    found = measure_peer("engine", directory, row_result("x", [1]), 1.0, 2)
    assert found is not None
    assert found.rates == [42, 42]
    assert found.reason == ""
    assert found.command.startswith("benchmark_app -m model.x -d CPU -hint throughput")
    assert "-infer_precision bf16 -shape image[1,100,90,3],size_like[200,180]" in found.command
    assert str(tmp_path) not in found.command
    monkeypatch.setattr(peers, "BENCHMARK_APP", "raise SystemExit('went wrong')")
    broken = measure_peer("engine", directory, row_result("x", [1]), 1.0, 2)
    assert broken is not None
    assert "went wrong" in broken.reason
    assert not broken.rates


def test_models_without_a_peer_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = row_result("x", [1])
    assert measure_peer("a", tmp_path, result, 1.0, 1) is None
    other = engine_directory(tmp_path / "ort", "onnxruntime", "fp32")
    assert measure_peer("a", other, result, 1.0, 1) is None
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    plan = engine_directory(tmp_path / "plan", "tensorrt", "fp16")
    found = measure_peer("a", plan, result, 1.0, 1)
    assert found is not None
    assert found.reason == "trtexec is not installed"


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
    assert best_under(sweep, slo_from_text("p99=20ms"), slots_flag=False) == sweep.points[1]
    assert best_under(sweep, slo_from_text("p99=14ms"), slots_flag=False) is None
    assert best_under(sweep, slo_from_text("p99=0.014s"), slots_flag=True) == sweep.points[2]
    assert best_under(sweep, slo_from_text("p50=60ms"), slots_flag=False) == sweep.points[3]
    lines = slo_lines(sweep, slo_from_text("p99=20ms"), slots_flag=False)
    assert "97 images/s" in lines[0]
    assert "unetrt predict -m engine --batch 1 -i" in lines[-1]
    assert "--slots" not in lines[-1]
    built = replace(sweep, build="unetrt build a.pth -o ENGINE", target="ENGINE")
    lines = slo_lines(built, slo_from_text("p99=20ms"), slots_flag=True)
    assert lines[1].strip() == built.build
    assert "-m ENGINE --batch 1 --slots 2" in lines[-1]
    lines = slo_lines(replace(built, plan=True), slo_from_text("p50=60ms"), slots_flag=False)
    assert lines[1].endswith("-o ENGINE --batch 1,4,4")
    (missed,) = slo_lines(sweep, slo_from_text("p99=1ms"), slots_flag=False)
    assert "no setting meets it; the lowest is 10 ms, at batch 1, slots 1" in missed
    assert (
        "nothing was swept"
        in slo_lines(replace(sweep, points=()), slo_from_text("p50=1s"), True)[0]
    )


@pytest.mark.parametrize("text", ["p99", "p98=1ms", "p99=1", "p99=0ms", "p99=-1ms", "99=1ms"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no such bound"):
        slo_from_text(text)


def test_the_first_checkpoint_is_the_baseline(tmp_path: Path) -> None:
    models = [tmp_path / "m.onnx", tmp_path, tmp_path / "a.pth", tmp_path / "b.pth"]
    assert baseline_checkpoint(models).name == "a.pth"
    entries = entries_from_models(models, models[2])
    assert [entry.backend for entry in entries] == ["reference", "auto", "auto", "auto", "auto"]
