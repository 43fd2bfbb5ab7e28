"""What the bench says of a GPU, as far as it can be tried without one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.bench.conftest import row_result
from tests.conftest import balanced_checkpoint
from unetrt.bench import rows
from unetrt.bench.job import result_from_dict
from unetrt.bench.machine import cuda_device, describe_bench_machine, device_bytes_in_use
from unetrt.bench.nvml import DeviceUse, Sample, read_sample, use_from_samples, watch_device
from unetrt.bench.report import detail_lines, warnings
from unetrt.bench.result import Bench, Row
from unetrt.bench.row import choose_graphs
from unetrt.bench.rows import (
    GPU_ENGINES,
    GPU_STEPS,
    EngineRow,
    Entry,
    _no_variant,
    _obstacle,
    build_options,
    entries_from_checkpoint,
    entry_steps,
)
from unetrt.bench.run import Run
from unetrt.bench.table import BenchOptions
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.engine import extras
from unetrt.engine.extras import describe_gpus
from unetrt.engine.probe import PRECISIONS, BackendStatus, probe_backends
from unetrt.engine.torch_backend import TorchEngine
from unetrt.training.step import cpu_computes_bf16


@pytest.mark.parametrize(
    ("device", "found"),
    [("cpu", ""), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("NVIDIA H200 (cuda:0)", "cuda:0")],
)
def test_the_device_of_an_engine_is_found_in_its_name(device: str, found: str) -> None:
    assert cuda_device(device) == found


def test_a_cpu_has_nothing_to_watch() -> None:
    with watch_device("cpu") as watch:
        pass
    assert (watch.use, watch.reason) == (None, "")
    assert device_bytes_in_use("cpu") is None


def test_a_gpu_that_nvml_does_not_tell_of_costs_a_reason_and_nothing_else() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with watch_device("NVIDIA X (cuda:0)") as watch:
        pass
    assert watch.use is None
    missing = importlib.util.find_spec("pynvml") is None
    assert watch.reason.startswith("the package pynvml" if missing else "NVML does not tell")


def sample(watts: float | None, sm_mhz: int | None, memory: int, reasons: int) -> Sample:
    return Sample(watts=watts, sm_mhz=sm_mhz, memory=memory, reasons=reasons)


def test_samples_are_summed_up_with_what_held_the_gpu_back() -> None:
    samples = [sample(300.0, 1980, 10, 0x1), sample(500.0, 1500, 30, 0x4 | 0x20)]
    use = use_from_samples([*samples, sample(None, None, 20, 0x4), sample(400.0, 1600, 20, 0)])
    assert use.watts == (400.0, 500.0)
    assert use.sm_mhz == (1500, 1980)
    assert (use.samples, use.memory) == (4, 30)
    assert use.throttled == {"power cap": 0.5, "heat (software)": 0.25}, "idle holds nothing back"
    assert use_from_samples([sample(None, None, 1, 0)]).watts is None


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    """A stand-in for pynvml: its library needs a driver."""

    class NVMLError(Exception):
        pass

    def unknown(*_: object) -> int:
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlDeviceGetPowerUsage=unknown,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=7),
        nvmlDeviceGetClockInfo=lambda handle, clock: 1000 + clock,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 4,
    )
    found = read_sample(nvml, None)  # type: ignore[arg-type]
    assert found == sample(None, 1001, 7, 4)


def test_power_and_throttling_are_shown(bench: Bench) -> None:
    use = DeviceUse(
        samples=9, watts=(640.4, 699.6), sm_mhz=(1700, 1980), memory=5, throttled={"power cap": 0.3}
    )
    result = replace(row_result("x", [10.0]), use=use)
    assert result_from_dict(json.loads(json.dumps(asdict(result)))) == result
    blind = replace(row_result("y", [10.0]), use_reason="the package pynvml is needed here")
    both = replace(bench, rows=(Row(name="x", result=result), Row(name="y", result=blind)))
    text = "\n".join(detail_lines(both))
    assert "640, at most 700 (1700 to 1980)" in text
    assert "the package pynvml is needed here" in text
    assert warnings(both) == ["x: the GPU was held back by power cap, 30% of the time"]


def test_a_plan_in_fp16_is_a_waterfall(tmp_path: Path) -> None:
    entry = Entry(name="tensorrt-fp16", model=tmp_path, build="unetrt build", build_seconds=3.0)
    steps = entry_steps(entry, "tensorrt", "fp16")
    assert [step.name.removeprefix("tensorrt-fp16") for step in steps] == [
        "",
        " + batch",
        " + CUDA graph",
        " + slots in flight",
    ]
    assert [(s.batch, s.slots, s.graphs) for s in steps] == [step[1:] for step in GPU_STEPS]
    assert (steps[0].batch, steps[0].slots, steps[0].graphs) == (1, 1, False)
    assert (steps[-1].batch, steps[-1].slots, steps[-1].graphs) == (None, None, None)
    assert all(step.build_seconds == 3.0 for step in steps)
    assert entry_steps(entry, "tensorrt", "fp32") == [entry]
    assert entry_steps(entry, "openvino", "bf16") == [entry]
    plain, graph = entry_steps(entry, "torch", "fp16")
    assert plain == entry
    assert (graph.name, graph.graphs, graph.slots) == (f"{entry.name} + CUDA graph", True, None)
    assert not graph.required


def test_steps_that_cannot_run_here_are_listed_with_the_reason(
    checkpoint_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.setattr("unetrt.bench.rows.ENGINES", GPU_ENGINES)
    entries = entries_from_checkpoint(checkpoint_file(), tmp_path, [(64, 64)], "cpu")
    statuses = {status.name: status for status in probe_backends()}
    for backend in ("tensorrt", "tensorrt-rtx"):
        steps = [entry for entry in entries if entry.name.startswith(f"{backend}-fp16")]
        assert len(steps) == 4
        assert all(statuses[backend].detail in entry.reason for entry in steps)
    for name in ("tensorrt-int8", "tensorrt-rtx-int8", "onnxruntime-cuda-fp32"):
        assert next(entry for entry in entries if entry.name == name).reason
    half = next(entry for entry in entries if entry.name == "torch-half")
    assert bool(half.reason) != cpu_computes_bf16()
    assert not half.required


def test_a_half_that_would_be_fp32_is_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetrt.training.step.cpu_computes_bf16", lambda: False)
    assert "has no bf16" in _no_variant("torch-half", "cpu")
    assert _no_variant("torch-half", "cuda:0") == ""
    assert _no_variant("torch-compile", "cpu") == ""
    monkeypatch.setattr("unetrt.training.step.cpu_computes_bf16", lambda: True)
    assert _no_variant("torch-half", "cpu") == ""


def test_a_build_is_said_before_it_starts(
    checkpoint_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(model: Path, directory: Path, options: object) -> None:
        raise UserError(f"said: {capsys.readouterr().err}")

    monkeypatch.setattr("unetrt.bench.rows.build_engine", build)
    monkeypatch.setattr("unetrt.bench.rows.ENGINES", (EngineRow("onnxruntime", "fp32"),))
    entries = entries_from_checkpoint(checkpoint_file(), tmp_path, [(64, 64)], "cpu")
    (entry,) = [entry for entry in entries if entry.name == "onnxruntime-fp32"]
    assert "bench: build onnxruntime-fp32" in entry.reason


ORT_ON_CUDA = EngineRow("onnxruntime", "fp32", cuda=True)
TORCH_ON_CUDA = EngineRow("torch", "fp16", cuda=True)


def test_every_precision_of_a_plan_has_a_row() -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert {r.precision for r in GPU_ENGINES if r.backend == backend} == set(
            PRECISIONS[backend]
        )


@pytest.mark.parametrize(
    ("row", "device", "gpus", "providers", "pycuda", "reason"),
    [
        (ORT_ON_CUDA, "auto", 1, ["CUDAExecutionProvider"], True, ""),
        (ORT_ON_CUDA, "cuda:1", 2, ["CUDAExecutionProvider"], True, ""),
        (ORT_ON_CUDA, "auto", 0, ["CUDAExecutionProvider"], True, "0 CUDA devices"),
        (ORT_ON_CUDA, "auto", 1, ["CPUExecutionProvider"], True, "no CUDAExecutionProvider: CPU"),
        (ORT_ON_CUDA, "auto", 1, ["CUDAExecutionProvider"], False, "pycuda is not installed"),
        (ORT_ON_CUDA, "cpu", 1, ["CUDAExecutionProvider"], True, "a row of CUDA, and the bench is"),
        (EngineRow("onnxruntime", "fp32"), "auto", 1, [], True, ""),
        (EngineRow("onnxruntime", "fp32"), "cuda", 1, [], True, "a row of the CPU"),
        (EngineRow("openvino", "bf16"), "cuda", 1, [], True, "a row of the CPU"),
        (EngineRow("tensorrt-rtx", "int8"), "auto", 1, [], True, ""),
        (EngineRow("tensorrt-rtx", "fp8"), "auto", 1, [], True, "not built in fp8"),
        (TORCH_ON_CUDA, "auto", 1, [], False, ""),
        (TORCH_ON_CUDA, "cuda:1", 2, [], True, ""),
        (TORCH_ON_CUDA, "cpu", 1, [], True, "a row of CUDA, and the bench is of cpu"),
    ],
)
def test_a_row_runs_where_its_engine_does_and_says_the_true_reason_elsewhere(
    row: EngineRow,
    device: str,
    gpus: int,
    providers: list[str],
    pycuda: bool,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = SimpleNamespace(get_available_providers=lambda: providers)
    monkeypatch.setattr(rows, "cuda_devices", lambda: gpus)
    monkeypatch.setattr(rows, "is_installed", lambda name: pycuda)
    monkeypatch.setattr(rows, "import_module", lambda name: runtime)
    found = _obstacle(row, BackendStatus(row.backend, True, True, "1"), device)
    assert (reason in found) if reason else not found


def test_onnx_runtimes_row_of_the_gpu_asks_for_the_gpu(
    checkpoint_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` would open it on the CPU, and its row would be the other one again."""
    engines = (EngineRow("onnxruntime", "fp32"), ORT_ON_CUDA, TORCH_ON_CUDA)
    on_gpu = [BackendStatus(name, True, True, "1") for name in ("onnxruntime", "torch")]
    monkeypatch.setattr(rows, "probe_backends", lambda: on_gpu)
    monkeypatch.setattr(rows, "ENGINES", engines)
    monkeypatch.setattr(rows, "_no_cuda_provider", str)
    monkeypatch.setattr(rows, "_built_entry", lambda c, d, o: Entry(name=d.name, model=d))
    built = entries_from_checkpoint(checkpoint_file(), tmp_path, [(64, 64)], "auto")
    devices = {entry.name: entry.device for entry in built}
    assert devices["onnxruntime-fp32"] == ""
    assert devices["onnxruntime-cuda-fp32"] == "cuda"
    assert devices["torch-cuda-fp16"] == devices["torch-cuda-fp16 + CUDA graph"] == "cuda"
    run = Run([], {}, tmp_path, BenchOptions(images=tmp_path), ModelSpec())
    jobs = {entry.name: run._job(entry, []) for entry in built}
    assert jobs["onnxruntime-fp32"].device == "auto"
    assert jobs["onnxruntime-cuda-fp32"].device == "cuda"
    built = entries_from_checkpoint(checkpoint_file(), tmp_path, [(64, 64)], "cuda:1")
    entry = next(e for e in built if e.name == "onnxruntime-cuda-fp32")
    assert entry.device == "", "the bench's own"


def test_gpus_are_named_by_whoever_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "cuda_devices", lambda: 2)
    monkeypatch.setattr(extras, "_driver", lambda: "580.65")
    ask = (list, lambda: ["NVIDIA X", "NVIDIA X"], lambda: ["never asked"])
    monkeypatch.setattr(extras, "GPU_NAMES", ask)
    assert describe_gpus() == {"gpu": "2 × NVIDIA X", "driver": "580.65"}
    assert describe_bench_machine()["gpu"] == "2 × NVIDIA X"
    monkeypatch.setattr(extras, "GPU_NAMES", (list,))
    monkeypatch.setattr(extras, "_driver", str)
    assert describe_gpus() == {"gpu": "2 CUDA devices"}
    monkeypatch.setattr(extras, "cuda_devices", lambda: 0)
    assert describe_gpus() == {}


def test_nvml_names_gpus_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pynvml, as some versions of it are: names are bytes."""
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA Y",
        nvmlSystemGetDriverVersion=lambda: "580.1",
    )
    monkeypatch.setattr(extras, "_nvml", lambda: nvml)
    assert extras._names_by_nvml() == ["NVIDIA Y"]
    assert extras._driver() == "580.1"


def test_an_engine_without_cuda_graphs_refuses_them() -> None:
    with TorchEngine(balanced_checkpoint(), "cpu") as engine:
        choose_graphs(engine, None)
        choose_graphs(engine, False)
        assert engine.graphs is None
        with pytest.raises(UserError, match="runs no CUDA graphs"):
            choose_graphs(engine, True)
        engine.graphs = True
        choose_graphs(engine, False)
        assert engine.graphs is False


def test_a_build_of_the_bench_is_never_taken_from_an_earlier_one() -> None:
    options = build_options("openvino", "bf16", [(64, 64)], SpecOverrides(scale=0.5))
    assert options.rebuild, "its time is a column"
    assert options.gate.force
    assert options.overrides.scale == 0.5
    assert options.plan.sizes == ((64, 64),)
