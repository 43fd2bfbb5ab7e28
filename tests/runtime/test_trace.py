"""The trace: a file that trace viewers open, whose spans nest, and that does not grow for ever."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import ThresholdEngine, torch_engine, write_picture
from unetrt.bench.stages import StageClock
from unetrt.runtime.pipeline import PipelineOptions, run_pipeline
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks
from unetrt.runtime.trace import NO_TRACE, SLOT_ROWS, Trace

Event = dict[str, Any]


def check_schema(events: list[Event]) -> dict[int, str]:
    """Raise where an event breaks the format's own rules; return the rows' names."""
    names = {}
    for event in events:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            assert event["name"] == "thread_name"
            names[event["tid"]] = event["args"]["name"]
        else:
            assert isinstance(event["ts"], int | float)
            assert event["ts"] >= 0
            assert isinstance(event["dur"], int | float)
            assert event["dur"] >= 0
            assert isinstance(event["args"], dict)
    assert {event["tid"] for event in events} == set(names), "a row without a name"
    return names


def check_nesting(events: list[Event]) -> None:
    """On each row a span lies within another or apart from it."""
    rows: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["tid"]].append(event)
    for spans in rows.values():
        open_ends: list[float] = []
        for span in sorted(spans, key=lambda s: (s["ts"], -s["dur"])):
            start, end = span["ts"], span["ts"] + span["dur"]
            while open_ends and open_ends[-1] <= start + 1e-6:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 1e-6, span
            open_ends.append(end)


def by_name(events: list[Event]) -> dict[str, list[Event]]:
    named: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            named[event["name"]].append(event)
    return named


def test_a_job_is_traced_from_decode_to_write(tmp_path: Path) -> None:
    for index in range(13):
        write_picture(tmp_path / "in" / f"{index}.png", steel(index, 32, 32 + index % 2 * 8))
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out")
    trace = Trace()
    pipeline = PipelineOptions(batch=3, slots=2, load_threads=2, trace=trace)
    with torch_engine(balanced_checkpoint()) as engine:
        summary = predict_masks(engine, tasks, PredictOptions(pipeline=pipeline))
    assert summary.done == 13
    trace.write(tmp_path / "trace.json")
    assert [path.name for path in tmp_path.glob("*trace*")] == ["trace.json"]
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert isinstance(events, list)
    names = check_schema(events)
    check_nesting(events)
    found = by_name(events)
    for stage in ("load", "decode", "resize", "save", "encode", "write"):
        assert len(found[stage]) == 13, stage
        place = "load" if stage in ("load", "decode", "resize") else "write"
        assert all(names[e["tid"]].startswith(place) for e in found[stage]), stage
    for stage in ("fill a slot", "start a batch", "wait for a batch", "batch"):
        assert [e["args"]["batch"] for e in found[stage]] == [0, 1, 2, 3, 4], stage
    assert {names[e["tid"]] for e in found["batch"]} == {"slot 0", "slot 1"}
    assert all(e["tid"] >= SLOT_ROWS for e in found["batch"])
    assert sum(e["args"]["images"] for e in found["batch"]) == 13
    saved = [e["args"]["batch"] for e in found["save"]]
    assert {batch: saved.count(batch) for batch in range(5)} == {
        e["args"]["batch"]: e["args"]["images"] for e in found["batch"]
    }


def test_batches_in_flight_overlap_on_their_rows() -> None:
    trace = Trace()
    options = PipelineOptions(batch=1, slots=2, trace=trace)
    with ThresholdEngine() as engine:
        image = steel(0, 16, 16)
        results = run_pipeline(
            engine, range(12), lambda _: (image, (16, 16)), lambda *_: None, options
        )
        assert len(list(results)) == 12
    first, second = by_name(list(trace.events()))["batch"][:2]
    assert first["tid"] != second["tid"]
    assert second["ts"] < first["ts"] + first["dur"]


def test_the_bench_does_not_ask_for_the_devices_spans() -> None:
    """A slot that is timed replays no CUDA graph: what is measured would be another engine."""
    options = PipelineOptions(trace=StageClock())
    with ThresholdEngine() as engine:
        image = steel(0, 16, 16)
        for given, timed in ((options, False), (PipelineOptions(trace=Trace()), True)):
            results = run_pipeline(
                engine, range(2), lambda _: (image, (16, 16)), lambda *_: None, given
            )
            assert len(list(results)) == 2
            assert engine.timed is timed


def test_spans_of_threads_lie_on_rows_of_their_own() -> None:
    trace = Trace()

    def work() -> None:
        with trace.span("outer"), trace.span("inner", batch=3):
            time.sleep(0)

    for _ in range(3):  # one after the other: the system may use a thread's number again
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join()
    events = list(trace.events())
    names = check_schema(events)
    check_nesting(events)
    assert list(names.values()) == ["worker"] * 3
    spans = [event for event in events if event["ph"] == "X"]
    assert [span["name"] for span in spans] == ["outer", "inner"] * 3
    assert spans[1]["args"] == {"batch": 3}


def test_a_span_that_fails_is_noted() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="no"), trace.span("decode"):
        raise ValueError("no")
    assert [event["name"] for event in trace.events()] == ["thread_name", "decode"]


def test_the_number_of_spans_is_bounded_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace(most=5)
    with caplog.at_level(logging.WARNING):
        for index in range(20):
            with trace.span(str(index)):
                pass
    assert [e["name"] for e in trace.events() if e["ph"] == "X"] == ["0", "1", "2", "3", "4"]
    (record,) = caplog.records
    assert "5 spans are kept" in record.getMessage()


def test_a_trace_of_nothing_is_a_trace(tmp_path: Path) -> None:
    Trace().write(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8")) == []


def test_without_a_trace_nothing_is_noted() -> None:
    with NO_TRACE.span("decode", batch=1):
        pass
    NO_TRACE.note("batch", 0, 0)
    assert not hasattr(NO_TRACE, "events")
