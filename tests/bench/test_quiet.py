"""What the report warns of, and the shares that it does not tell."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.bench.conftest import row_result
from tests.bench.test_report import cells_of
from unetrt.bench import peak as peak_module
from unetrt.bench import throttle
from unetrt.bench.layer_report import layer_lines
from unetrt.bench.layers import Layer, LayerTable
from unetrt.bench.machine import OthersClock
from unetrt.bench.peak import measure_peaks
from unetrt.bench.peaks import Peak, Peaks, peaks_from_dict
from unetrt.bench.quiet import warnings
from unetrt.bench.report import context_lines, detail_lines
from unetrt.bench.report_files import csv_text
from unetrt.bench.result import Bench, Row
from unetrt.bench.throttle import ThrottleClock


def one_row(bench: Bench, engine: list[float], files: list[float], shapes: int = 1) -> Bench:
    result = row_result("x", files)
    result = replace(result, engine_only=engine, with_copies=engine, shapes=shapes)
    return replace(bench, rows=(Row(name="x", result=result),), peers=())


def test_files_faster_than_the_engine_alone_are_no_measurement(bench: Bench) -> None:
    (told,) = warnings(one_row(bench, [0.577, 0.577], [0.956, 0.956]))
    assert told == (
        "x: files to files, 0.956 images/s, is above the engine's 0.577: the machine was not quiet"
    )
    assert not warnings(one_row(bench, [100.0, 100.0], [104.0, 104.0])), "within the noise"
    (told,) = warnings(one_row(bench, [10.0, 10.0], [20.0, 20.0], shapes=2))
    assert "or images of other sizes" in told
    graphs = one_row(bench, [10.0, 10.0], [20.0, 20.0]).rows[0]
    assert graphs.result is not None
    faster = replace(graphs, result=replace(graphs.result, with_copies=[21.0, 21.0]))
    assert not warnings(replace(bench, rows=(faster,))), "CUDA graphs run with the copies alone"


def test_a_pass_above_what_bounds_it_is_a_warning(bench: Bench) -> None:
    """Its table says that the engine allows less than the pass had."""
    row = one_row(bench, [100.0, 100.0], [60.0, 60.0]).rows[0]
    assert row.result is not None
    assert row.result.stages is not None
    assert row.result.stages.reached == pytest.approx(7 / 18), "the engine's rate with the threads"
    above = replace(row.result.stages, bound=6.0, shared_bound=5.0)
    held = replace(bench, rows=(replace(row, result=replace(row.result, stages=above)),))
    (told,) = warnings(held)
    assert told.startswith("x: the pass whose stages were timed reached 140% of what bounds it")
    unknown = replace(above, bound=None, shared_bound=None)
    none = replace(bench, rows=(replace(row, result=replace(row.result, stages=unknown)),))
    assert unknown.reached is None
    assert not warnings(none)


def shares_of(bench: Bench) -> tuple[str, str]:
    """(in the table, in the CSV) of the second row, whose arithmetic is 8e10 a second."""
    cells = cells_of(detail_lines(bench))
    place = cells[0].index("of peak")
    rows = list(csv.DictReader(csv_text(bench).splitlines()))
    return cells[3][place], rows[1]["of_peak"]


def test_a_share_above_one_is_none_and_a_warning(bench: Bench) -> None:
    assert shares_of(bench) == ("8%", "0.08")
    low = replace(bench, peaks=Peaks((Peak("fp32", 7e10, "a product"),)))
    assert shares_of(low) == ("above the peak", "")
    told = [text for text in warnings(low) if "above the measured peak" in text]
    assert told[0].startswith("openvino: its arithmetic is above the measured peak")


def test_a_peak_of_a_crowded_machine_gives_no_share(bench: Bench) -> None:
    busy = replace(bench, peaks=replace(bench.peaks, others=0.2))
    assert shares_of(busy)[0] == "8%"
    assert "others kept 20% of the cores busy while the peak was probed: shares of it may be" in (
        "\n".join(warnings(busy))
    )
    crowded = replace(bench, peaks=replace(bench.peaks, others=0.5))
    assert shares_of(crowded) == ("peak unknown", "")
    assert any("probed: no share of it is told" in text for text in warnings(crowded))


def test_a_row_is_held_against_the_peak_of_its_own_device(bench: Bench) -> None:
    """A GPU's peak beside rows of the CPU, as `--device auto` has both, and the other way round."""
    gpu = replace(bench, peaks=replace(bench.peaks, on_gpu=True))
    assert shares_of(gpu) == ("", ""), "8 % of the GPU is nothing that a processor reached"
    layer = Layer(name="a", kind="Conv", precision="fp32", ms=1.0, block="b", flops=3 * 10**9)
    table = LayerTable(profiler="p", batch=1, runs=1, streams=1, wall=9.0, layers=(layer,))
    result = replace(row_result("x", [1.0, 1.0]), layers=table)
    on_cuda = replace(result, device="NVIDIA X (cuda:0)", flops=10**12)
    for found, peaks in ((result, gpu.peaks), (on_cuda, bench.peaks)):
        row = Row(name="x", result=found)
        assert "%" not in cells_of(layer_lines([row], peaks))[4][6]
        assert not warnings(replace(bench, rows=(row,), peaks=peaks)), "no impossible share either"
    assert "measured peak of the GPU: fp32" in "\n".join(context_lines(gpu))


def test_layers_above_the_peak_are_counted(bench: Bench) -> None:
    flops = 3 * 10**9
    layers = tuple(
        Layer(name=str(ms), kind="Conv", precision="fp32", ms=ms, block="b", flops=flops)
        for ms in (1.0, 2.0, 6.0)
    )
    table = LayerTable(profiler="p", batch=1, runs=1, streams=1, wall=9.0, layers=layers)
    result = replace(row_result("x", [1.0, 1.0]), layers=table)
    found = warnings(replace(bench, rows=(Row(name="x", result=result),)))
    assert any(text.startswith("x: 2 layers are above the measured peak") for text in found)


def test_the_probe_says_how_busy_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OthersClock, "share", lambda clock: 0.4)
    monkeypatch.setattr(peak_module, "is_installed", lambda name: False)
    monkeypatch.setattr(peak_module, "COPY_BYTES", 2**16)
    found = measure_peaks("cpu", sides=(64,), seconds=0.001)
    assert found.others == 0.4
    assert found.crowd
    assert peaks_from_dict(json.loads(json.dumps(asdict(found)))) == found


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cores of a package, as Linux shows what it has counted."""
    for core in range(2):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text("3\n")
        (folder / "package_throttle_count").write_text("7\n")
        (folder / "package_throttle_total_time_ms").write_text("99\n")
    monkeypatch.setattr(throttle, "COUNTERS", tmp_path)
    return tmp_path


def test_heat_that_held_the_processor_back_is_a_warning(counters: Path, bench: Bench) -> None:
    clock = ThrottleClock()
    assert clock.told()["throttled"] == "none counted"
    (counters / "cpu1" / "thermal_throttle" / "core_throttle_count").write_text("5\n")
    for core in range(2):
        (counters / f"cpu{core}" / "thermal_throttle" / "package_throttle_count").write_text("8\n")
    told = clock.told()
    assert told["throttled"] == "seen: core_throttle_count +2, package_throttle_count +1"
    found = warnings(replace(bench, rows=(), machine={**bench.machine, **told}))
    assert found == [
        "the processor was held back during the bench: core_throttle_count +2, "
        "package_throttle_count +1"
    ]


def test_what_the_kernel_does_not_count_is_said(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "COUNTERS", tmp_path / "none")
    monkeypatch.setattr(throttle, "clocks_text", str)
    told = ThrottleClock().told()
    assert told == {"clocks after": "not readable", "throttled": "not readable"}
    assert not warnings(replace(bench, rows=(), machine={**bench.machine, **told}))
