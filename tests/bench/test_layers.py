"""The layer table: every convolution is the network's, and no time is invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bench.conftest import row_result
from tests.bench.test_report import cells_of
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench.filled import Batch
from unetrt.bench.flops import count_flops, network_convolutions
from unetrt.bench.job import result_from_dict
from unetrt.bench.layer_report import layer_lines
from unetrt.bench.layers import (
    Layer,
    LayerTable,
    Record,
    layer_table_from_dict,
    layers_from_records,
    mean_records,
    precision_from_text,
)
from unetrt.bench.peaks import Peak, Peaks
from unetrt.bench.profilers import openvino_records, profile_layers, records_from_trace
from unetrt.bench.result import Bench, Row
from unetrt.bench.tensorrt_profile import LayerRecorder, layer_kinds, profiler_of
from unetrt.cli.bench import _lines
from unetrt.contract.spec import ModelSpec
from unetrt.engine.onnxruntime_backend import OnnxRuntimeEngine
from unetrt.engine.open import open_engine
from unetrt.engine.torch_backend import TorchEngine

Exported = Callable[..., Path]

SIZE = (40, 56)


def batch_of(count: int) -> Batch:
    return Batch([steel(i, *SIZE) for i in range(count)], SIZE)


def record(name: str, kind: str = "Convolution", seconds: float = 1.0) -> Record:
    return Record(name=name, kind=kind, precision="fp32", seconds=seconds)


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "onnxruntime")]
)
def test_every_convolution_is_found_and_the_sum_stays_below_the_clock(
    backend: str, exported: Exported
) -> None:
    with open_engine(exported(), backend, "cpu") as engine:
        table = profile_layers(engine, batch_of(2), 0.01)
    assert table is not None
    assert table.runs >= 5
    spec = balanced_checkpoint().spec
    known = [layer for layer in table.layers if layer.block]
    wanted = network_convolutions(spec, SIZE)
    assert [layer.block for layer in known] == [conv.block for conv in wanted]
    assert sum(layer.flops or 0 for layer in known) == 2 * count_flops(spec, SIZE)
    assert {layer.precision for layer in known} == {"fp32"}
    assert "int8" not in {layer.precision for layer in table.layers}, "bytes are cast, not computed"
    assert all(layer.ms > 0 for layer in table.layers)
    assert 0 < table.total <= 1.05 * table.wall
    assert layer_table_from_dict(json.loads(json.dumps(asdict(table)))) == table


def test_the_arithmetic_is_that_of_the_shapes_in_the_trace(
    exported: Exported, tmp_path: Path
) -> None:
    spec = balanced_checkpoint().spec
    images = np.stack(batch_of(3).images)
    masks = np.empty((3, *SIZE), np.uint8)
    with OnnxRuntimeEngine(exported(), spec, "fp32", profile=tmp_path / "p") as engine:
        engine.infer(images, masks)
        engine.infer(images, masks)
        events = json.loads(engine.end_profile().read_text())
    shapes = {}
    for event in events:
        arguments = event.get("args", {})
        if "Conv" in arguments.get("op_name", ""):
            image, *others = (next(iter(x.values())) for x in arguments["input_type_shape"])
            (out,) = (next(iter(x.values())) for x in arguments["output_type_shape"])
            if arguments["op_name"] == "ConvTranspose":  # its packed weights are not listed
                multiplied = np.prod(image) * out[1] * 2 * 2
            else:
                multiplied = np.prod(others[0]) * out[0] * out[2] * out[3]
            shapes[event["name"].removesuffix("_kernel_time")] = 2 * multiplied
    layers = layers_from_records(records_from_trace(events, 1), spec, SIZE, 3, 1)
    # ONNX Runtime pads channels to a whole vector: its shapes may be larger, never smaller.
    for layer in layers:
        if layer.flops:
            assert layer.flops <= shapes[layer.name]
    assert sum(layer.flops == shapes[layer.name] for layer in layers if layer.flops) >= 5


def test_pytorch_has_no_layer_table() -> None:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        assert profile_layers(engine, batch_of(1), 0.01) is None


def test_the_trace_counts_the_last_runs_alone() -> None:
    def node(name: str, at: int, spent: int) -> dict[str, object]:
        kind = {"op_name": "Relu", "output_type_shape": [{"float16": [1]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": spent, "args": kind}

    def run(at: int) -> dict[str, object]:
        return {"cat": "Session", "name": "model_run", "ts": at, "dur": 9, "args": {}}

    fence = {"cat": "Node", "name": "a_fence_before", "ts": 21, "dur": 77, "args": {}}
    events = [node("a", 11, 900), run(10), node("b", 23, 4), fence, node("a", 22, 2)]
    events += [run(20), node("a", 32, 4), node("b", 33, 0), run(30)]
    first, second = records_from_trace(events, 2)
    assert (first.name, first.kind, first.precision) == ("a", "Relu", "fp16")
    assert (first.seconds, second.seconds) == pytest.approx((3e-6, 2e-6))
    assert records_from_trace([], 2) == []


def test_means_keep_the_order_and_leave_out_what_took_no_time() -> None:
    runs = [[record("a", seconds=1), record("b", seconds=0)], [record("a", seconds=3)]]
    assert mean_records(runs) == [record("a", seconds=2)]
    assert mean_records([]) == []


@pytest.mark.parametrize("bilinear", [False, True])
def test_layers_of_a_fused_network_have_no_arithmetic(bilinear: bool) -> None:
    spec = ModelSpec(width=4, bilinear=bilinear)
    wanted = network_convolutions(spec, SIZE)
    records = [record(str(i)) for i in range(len(wanted))]
    assert all(layer.flops for layer in layers_from_records(records, spec, SIZE, 1, 1))
    fused = layers_from_records(records[1:], spec, SIZE, 1, 1)
    assert not any(layer.flops or layer.block for layer in fused)
    convert = [*records, record("c", "Convert"), record("d", "ConvertLike")]
    assert layers_from_records(convert, spec, SIZE, 1, 1)[0].block == "inc.1"


def test_time_on_two_streams_counts_half() -> None:
    (layer,) = layers_from_records([record("a", "Relu")], ModelSpec(), SIZE, 1, 2)
    assert layer.ms == 500
    assert layer.achieved is None


@pytest.mark.parametrize(
    ("text", "kind", "precision"),
    [
        ("brgconv_avx512_bf16", "Convolution", "bf16"),
        ("jit_avx512_f32", "MaxPool", "fp32"),
        ("brgconv_avx512_I8", "Convolution", "int8"),
        ("brgconv_avx512_i8", "Convolution", "int8"),
        ("jit_avx2_I8", "Subgraph", "uint8"),
        ("ref_I8", "Convert", "uint8"),
        ("jit_avx2_i8", "Reorder", "int8"),
        ("uint8", "Cast", "uint8"),
        ("uint8", "QLinearConv", "int8"),
        ("UInt8", "CaskConvolution", "int8"),
        ("float16", "Conv", "fp16"),
        ("Half", "", "fp16"),
        ("int64", "Shape", "int64"),
        ("", "", ""),
    ],
)
def test_the_profilers_words_for_precisions(text: str, kind: str, precision: str) -> None:
    assert precision_from_text(text, kind) == precision


def test_a_plan_tells_kinds_when_it_was_built_verbosely() -> None:
    detailed = {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format Half"}],
    }
    assert layer_kinds(json.dumps({"Layers": [detailed, "plain name"]})) == {
        "conv1": ("CaskConvolution", "fp16")
    }
    assert layer_kinds(json.dumps({"Layers": ["a", "b"]})) == {}


def test_tensorrts_profiler_tells_the_recorder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    recorder = LayerRecorder({"pool": ("Pooling", "fp16")})
    profiler = profiler_of("tensorrt-rtx", recorder)
    for scale in (1.0, 3.0):
        profiler.report_layer_time("node_conv2d_1 + node_relu_1", 2.0 * scale)
        profiler.report_layer_time("pool", 0.5 * scale)
        recorder.end_batch()
    first, second = mean_records(recorder.runs)
    assert first.is_convolution
    assert (first.precision, second.kind, second.precision) == ("", "Pooling", "fp16")
    assert (first.seconds, second.seconds) == pytest.approx((0.004, 0.001))


@pytest.fixture
def table() -> LayerTable:
    layers = (
        Layer(name="c", kind="Conv", precision="fp32", ms=6.0, block="inc.1", flops=3 * 10**9),
        Layer(name="p", kind="Pool", precision="fp32", ms=1.98),
        Layer(name="x", kind="Cast", precision="i32", ms=0.01),
        Layer(name="y", kind="Cast", precision="i32", ms=0.01),
    )
    return LayerTable(profiler="a profiler", batch=1, runs=7, streams=2, wall=10.0, layers=layers)


def test_a_faster_row_without_a_profiler_hides_no_layers(bench: Bench, table: LayerTable) -> None:
    """The terminal shows the fastest row alone, and PyTorch's engine may be it."""
    torch = Row(name="torch", result=row_result("torch", [99.0]), agreement=1.0, trusted=True)
    bare = replace(bench, rows=(*bench.rows, torch))
    assert "no layers: no row with trusted masks has a profiler of its own" in _lines(bare, True)
    assert not [line for line in _lines(bare, False) if "layers" in line]
    profiled = replace(bench.rows[1], result=replace(row_result("x", [50.0]), layers=table))
    lines = _lines(replace(bench, rows=(bench.rows[0], profiled, torch)), True)
    assert "openvino: layer by layer, from a profiler" in lines
    assert "torch: where the time of files to files goes" in lines


def test_the_layers_are_shown_with_their_share_of_the_peak(table: LayerTable) -> None:
    result = replace(row_result("x", [50.0]), layers=table)  # 100 images/s, engine only
    assert result_from_dict(json.loads(json.dumps(asdict(result)))) == result
    peaks = Peaks((Peak("fp32", 1e12, "a product"),))
    lines = layer_lines([Row(name="a", result=result), Row(name="b", reason="gone")], peaks)
    assert lines[0] == "a: layer by layer, from a profiler"
    cells = cells_of(lines[2:-2])
    assert cells[2] == ["inc.1 (c)", "Conv", "fp32", "6", "75.0%", "3", "50%"]
    assert cells[3] == ["p", "Pool", "fp32", "1.98", "24.8%", "", ""]
    assert cells[4][:5] == ["2 others, each below 1%", "", "", "0.02", "0.2%"]
    assert (
        "The layers take 8 ms of a batch of 1, 2 streams at once; its 1 convolutions" in lines[-1]
    )
    assert lines[-1].endswith("the sum is 80% and 80% of it")
    low = Peaks((Peak("fp32", 4e11, "a product"),))
    cells = cells_of(layer_lines([Row(name="a", result=result)], low)[2:-2])
    assert cells[2][-1] == "above the peak"
    crowded = replace(peaks, others=0.5)
    cells = cells_of(layer_lines([Row(name="a", result=result)], crowded)[2:-2])
    assert cells[2][-1] == "peak unknown"
    bare = replace(table, layers=table.layers[1:])
    (*_, last) = layer_lines([Row(name="a", result=replace(result, layers=bare))], peaks)
    assert "not the network's one by one" in last
    assert layer_lines([Row(name="b", reason="gone")], peaks) == []


def test_a_convolution_in_parts_is_one_layer_where_its_last_part_ran() -> None:
    """The part of the skip needs nothing of what lies below, and could run before it."""
    ran = [("up/skip", 2), ("down", 3), ("up/up", 5), ("last", 7)]
    infos = [
        SimpleNamespace(
            node_name=name,
            node_type="Convolution",
            exec_type="brgconv_avx512_amx_bf16",
            real_time=timedelta(seconds=seconds),
        )
        for name, seconds in ran
    ]
    found = [(record.name, record.seconds) for record in openvino_records(infos)]
    assert found == [("down", 3.0), ("up", 7.0), ("last", 7.0)]
