"""A speed-up with its range, and the machines on which none is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.conftest import row_result
from unetrt.bench.gain import gain_from_rates, gain_of, speed_up
from unetrt.bench.quiet import warnings
from unetrt.bench.report import fastest_row, table_lines
from unetrt.bench.result import Bench, Row


def with_passes(bench: Bench, mine: list[float], theirs: list[float]) -> Bench:
    first, second = bench.rows[:2]
    rows = (
        replace(first, result=row_result("loop", theirs)),
        replace(second, result=row_result("openvino", mine)),
    )
    return replace(bench, rows=rows, peers=())


def told(bench: Bench, row: int = 1) -> str:
    return table_lines(bench)[2 + row].split("|")[5].strip()


@pytest.mark.parametrize(
    ("mine", "theirs", "text"),
    [
        ([40, 40, 41], [10, 10, 10.2], "4.00×"),
        ([220, 240, 260], [9, 10, 11], "24.00× (20–29)"),
        ([40, 40, 40], [9, 10, 11], "4.00× (3.64–4.44)"),
        ([40, 40, 80], [10, 10, 10], "passes differ by ±50%: no speed-up"),
        ([40, 40, 40], [5, 10, 15], "passes differ by ±50%: no speed-up"),
    ],
)
def test_a_wide_spread_gives_a_range_and_a_wild_one_nothing(
    mine: list[float], theirs: list[float], text: str, bench: Bench
) -> None:
    assert told(with_passes(bench, mine, theirs)) == text
    assert gain_from_rates(mine, theirs).text == text
    assert told(with_passes(bench, mine, theirs), row=0) == "1.00×"


def test_crowded_cores_give_no_speed_up_on_either_side(bench: Bench) -> None:
    quiet = with_passes(bench, [40, 40], [10, 10])
    for place in (0, 1):
        row = quiet.rows[place]
        assert row.result is not None
        crowded = replace(row, result=replace(row.result, others=0.5))
        rows = (crowded, quiet.rows[1]) if place == 0 else (quiet.rows[0], crowded)
        found = replace(quiet, rows=rows)
        assert told(found) == (f"others kept 50% of the cores busy during {row.name}: no speed-up")
        assert speed_up(found.rows[1], found) is None
        assert fastest_row(found) == found.rows[1], "its stages are shown all the same"


def test_the_load_before_counts_where_nothing_else_is_known(bench: Bench) -> None:
    quiet = with_passes(bench, [40, 40], [10, 10])
    machine = {**bench.machine, "cores used": "2 of 4", "load before": "3.5"}
    loaded = replace(quiet, machine=machine)
    assert told(loaded) == "load by others 3.5: no speed-up"
    assert told(replace(quiet, machine={**machine, "load before": "2.5"})) == "4.00×"
    known = tuple(
        replace(row, result=replace(row.result, others=0.0)) for row in loaded.rows if row.result
    )
    assert told(replace(loaded, rows=known)) == "4.00×"


def test_masks_that_are_not_trusted_have_none(bench: Bench) -> None:
    wrong = Row(name="wrong", result=row_result("wrong", [90, 90]), reason="agreement low")
    found = replace(bench, rows=(bench.rows[0], wrong), peers=())
    assert gain_of(wrong, found) is None
    assert told(found) == "agreement low"


def test_processes_of_the_baseline_that_differ_give_a_range(bench: Bench) -> None:
    """PyTorch runs a small network at one of several speeds; passes of one process are noise."""
    theirs, mine = [45.0, 46.0, 73.0, 75.0], [300.0, 310.0]
    assert told(with_passes(bench, mine, theirs)) == "passes differ by ±25%: no speed-up"
    found = with_passes(bench, mine, theirs)
    first = found.rows[0]
    assert first.result is not None
    several = replace(first, result=replace(first.result, again=3))
    found = replace(found, rows=(several, *found.rows[1:]))
    assert told(found) == "5.13× (4.00–6.89)"
    noisy = with_passes(found, [100.0, 300.0], theirs)
    rows = (several, noisy.rows[1])
    assert told(replace(noisy, rows=rows)) == "passes differ by ±50%: no speed-up"
    assert "reference: processes differ by ±25%, files to files" in warnings(found)[0]
