"""What files to files reaches of the engine: measured on both sides of every pass."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.conftest import row_result
from tests.bench.test_bench import CheckpointFile, job_of
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import engine_clock, engine_row
from unetrt.bench.engine_clock import EngineClock
from unetrt.bench.file_passes import time_passes
from unetrt.bench.filled import Batch, FilledSlots
from unetrt.bench.machine import OthersClock
from unetrt.bench.report import detail_lines, table_lines
from unetrt.bench.report_files import write_report
from unetrt.bench.result import Bench, Row
from unetrt.bench.row import measure_row
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine, Slot
from unetrt.engine.torch_backend import TorchEngine

BATCH = Batch([steel(0, 32, 32)], (32, 32))


def test_the_engine_is_measured_before_between_and_after_the_passes(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def noted(owner: Any, name: str, letter: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            order.append(letter)
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    noted(EngineClock, "measure", "E")
    noted(engine_row, "predict_masks", "F")
    noted(engine_row, "timed_pass", "S")
    job = replace(job_of(checkpoint_file(), pictures, tmp_path / "o"), seconds=1e-6, repeats=4)
    one_size = replace(job, images=job.images[::2], outputs=job.outputs[::2])
    result = measure_row(one_size)
    passes = len(result.files_to_files)
    told = "".join(order)
    assert told.startswith("FE" + "FE" * passes), "the first F warms up"
    assert told.endswith("SE")
    assert len(result.engine_only) == told.count("E") >= 4 + 1
    rates = result.engine_only
    assert result.of_engine == pytest.approx(
        [rate / ((rates[i] + rates[i + 1]) / 2) for i, rate in enumerate(result.files_to_files)]
    )


def test_a_machine_that_grows_slower_changes_no_share(tmp_path: Path) -> None:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        job = job_of(tmp_path, tmp_path, tmp_path / "o")
        clock = EngineClock(engine, BATCH, 1, job)
        clock.with_copies[:] = [100.0, 60.0, 20.0]
        assert clock.shares([76.0, 38.0]) == pytest.approx([0.95, 0.95])
        clock.measure()
        assert len(clock.engine_only) == 4, "on a CPU both are one list"
        assert [0 < share < 1.1 for share in clock.cores] == [True]


def test_a_share_is_of_the_faster_region_and_of_enough_measurements(tmp_path: Path) -> None:
    """On CUDA engine only runs without CUDA graphs: copies and all may be faster with them."""
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        clock = EngineClock(engine, BATCH, 1, job_of(tmp_path, tmp_path, tmp_path / "o"))
    clock.engine_only = [90.0, 120.0, 60.0, 1.0]
    clock.with_copies = [100.0, 100.0, 80.0, 1.0]
    assert clock.shares([110.0, 50.0]) == pytest.approx([1.0, 0.5])
    assert clock.shares([110.0] * 4) == clock.shares([]) == []
    clock.engine_only = []
    assert clock.shares([50.0]) == pytest.approx([0.5]), "copies that cannot be left out"
    clock.with_copies = []
    assert clock.shares([50.0]) == []


def test_a_peer_is_held_against_the_faster_region(bench: Bench) -> None:
    faster = replace(row_result("openvino", [40]), engine_only=[80.0], with_copies=[150.0])
    assert faster.fastest_rate == 150
    rows = (bench.rows[0], replace(bench.rows[1], result=faster), *bench.rows[2:])
    assert "ours is 1.50 of it" in "\n".join(table_lines(replace(bench, rows=rows)))


def test_the_spread_of_a_low_share_is_in_points() -> None:
    low = replace(row_result("x", [9.0, 10.0]), of_engine=[0.10, 0.14])
    assert low.share_text == "12.0% ± 2.0%"


def test_others_are_counted_during_the_passes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0, 0.0, 0.0]

    def goes_on(wall: float, busy: float, own: float) -> None:
        now[:] = [now[0] + wall, now[1] + busy, now[2] + own]

    monkeypatch.setattr(OthersClock, "_now", staticmethod(lambda: tuple(now)))
    job = replace(job_of(Path("x"), tmp_path, tmp_path), outputs=[str(tmp_path / "0.png")])
    found = time_passes(lambda: goes_on(1, 1, 1), job, lambda: goes_on(5, 10, 1))
    assert found.others == 0


def test_a_pass_begins_only_where_the_engine_can_be_measured_after_it(tmp_path: Path) -> None:
    """Else the row would be given up, and with it the pass that there is."""
    job = replace(job_of(Path("x"), tmp_path, tmp_path), outputs=[str(tmp_path / "0.png")])
    order: list[str] = []

    def between() -> None:
        order.append("E")
        time.sleep(0.1)

    hurried = replace(job, repeats=4, until=time.time() + 0.4)
    assert len(time_passes(lambda: order.append("F"), hurried, between).rates) == 1
    assert "".join(order) == "EFE"


def test_repeats_of_the_engine_end_with_the_rows_time(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(checkpoint_file(), pictures, tmp_path / "o")
    result = measure_row(replace(job, repeats=6, until=time.time()))
    assert len(result.files_to_files) == 1
    assert len(result.engine_only) == 2 + 1, "around the pass, and after that of the stages"


def test_two_batches_run_before_the_first_that_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch of a slot captures its CUDA graph."""
    ran: list[int] = []
    monkeypatch.setattr(engine_clock, "latency", lambda run, seconds: len(ran))
    real = FilledSlots.once
    monkeypatch.setattr(FilledSlots, "once", lambda slots: ran.append(1) or real(slots))
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        clock = EngineClock(engine, BATCH, 1, job_of(tmp_path, tmp_path, tmp_path / "o"))
        assert clock.latency() == 2


def test_passes_are_told_when_the_engine_may_be_measured(tmp_path: Path) -> None:
    order: list[str] = []
    job = replace(job_of(Path("x"), tmp_path, tmp_path), outputs=[str(tmp_path / "0.png")])
    time_passes(lambda: order.append("F"), replace(job, repeats=2), lambda: order.append("E"))
    assert "".join(order) == "EFEFE"


def test_a_cycle_waits_for_every_slot_once() -> None:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        waits: list[int] = []
        with FilledSlots(engine, BATCH, 3) as slots:
            for index, slot in enumerate(slots.slots):
                real = slot.masks
                slot.masks = lambda i=index, real=real: (waits.append(i), real())[1]  # type: ignore
            assert slots.cycle() == 3
            assert waits == [], "all are in flight"
            assert slots.cycle() == 3
            assert waits == [0, 1, 2]


class _Slot(Slot):
    """Of an engine that computes `streams` batches at once, each in one second of its own clock."""

    images = np.zeros((1, 32, 32, 1), np.uint8)

    def __init__(self, engine: _Streams) -> None:
        self._engine, self._ends = engine, 0.0

    def reserve(self, batch: int, size: Size) -> U8:
        return self.images

    def submit(self, n: int, size: Size) -> None:
        self._ends = self._engine.ends_of_next()

    def masks(self) -> U8:
        self._engine.now = max(self._engine.now, self._ends)
        return self.images[..., 0]


class _Streams(Engine):
    device = "cpu"

    def __init__(self, streams: int) -> None:
        super().__init__(ModelSpec(channels=1))
        self.streams, self.now = streams, 0.0
        self._free = [0.0] * streams

    def slot(self) -> Slot:
        return _Slot(self)

    def ends_of_next(self) -> float:
        first = self._free.index(min(self._free))
        self._free[first] = max(self._free[first], self.now) + 1.0
        return self._free[first]


@pytest.mark.parametrize("seconds", [0.5, 2.5, 3.5, 10.0])
@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_a_rate_is_of_whole_rounds_of_all_streams(
    streams: int, slots: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few batches the seconds hold."""
    engine = _Streams(streams)
    monkeypatch.setattr("time.perf_counter", lambda: engine.now)
    job = replace(job_of(tmp_path, tmp_path, tmp_path / "o"), seconds=seconds)
    clock = EngineClock(engine, BATCH, slots, job)
    clock.measure()
    assert clock.with_copies == pytest.approx([min(streams, slots)])
    assert clock.warm_up().stable


def test_the_share_and_its_spread_are_a_column(tmp_path: Path) -> None:
    result = replace(row_result("x", [9.0, 10.0]), of_engine=[0.95, 0.97])
    rows = (Row(name="x", result=result), Row(name="y", result=row_result("y", [9.0])))
    bench = Bench(rows=rows, images=1, machine={"processor": "X"}, versions={})
    head, _, first, second = detail_lines(bench)
    assert "files to files of the engine" in head
    assert "96.0% ± 1.0%" in first
    assert "%" not in second.split("|")[2]
    table = write_report(bench, tmp_path, "x")[1]
    found = [line["of_engine"] for line in csv.DictReader(table.open())]
    assert [float(value or 0) for value in found] == pytest.approx([0.96, 0])
