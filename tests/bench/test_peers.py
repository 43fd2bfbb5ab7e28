"""The makers' own benchmarks: on the same file, run as our row is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.conftest import row_result
from unetrt.bench import peers
from unetrt.bench.peers import measure_peer, rate_from_output
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import MANIFEST, Manifest
from unetrt.engine.openvino_backend import openvino_core


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
    int8 = engine_directory(tmp_path / "int8", "openvino", "int8")
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = "bf16" if "BF16" in able else "f32"
    found = measure_peer("int8", int8, row_result("x", [1]), 1.0, 1)
    assert found is not None
    assert f"-infer_precision {hint} " in found.command, "as our own engine runs it here"
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
    rtx = engine_directory(tmp_path / "rtx", "tensorrt-rtx", "fp16")
    found = measure_peer("a", rtx, result, 1.0, 1)
    assert found is not None
    assert found.reason == "tensorrt_rtx is not installed"


def tool_in(folder: Path, name: str) -> None:
    """A program that answers as the maker's own does, if it is told what it has to be told."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\necho 'Throughput: 12.5 qps'\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("backend", "tool", "graphs", "manners"),
    [
        ("tensorrt", "trtexec", True, "--noDataTransfers --useSpinWait --useCudaGraph"),
        ("tensorrt", "trtexec", False, "--noDataTransfers --useSpinWait"),
        ("tensorrt-rtx", "tensorrt_rtx", True, "--rtxCudaGraphStrategy=wholeGraph"),
        ("tensorrt-rtx", "tensorrt_rtx", False, "--rtxCudaGraphStrategy=disable"),
    ],
)
def test_a_plans_peer_is_its_own_flavours_and_runs_as_the_row_does(
    backend: str,
    tool: str,
    graphs: bool,
    manners: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool_in(tmp_path / "bin", tool)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    plan = engine_directory(tmp_path / "plan", backend, "fp16")
    result = replace(row_result("x", [1]), batch=8, slots=3, graphs=graphs)
    found = measure_peer("a", plan, result, 2.0, 2)
    assert found is not None
    assert found.name == f"{tool} on a"
    assert found.rates == [100, 100]
    shapes = "--shapes=image:8x100x90x3,size_like:200x180"
    assert found.command == (
        f"{tool} --loadEngine=model.x {shapes} --duration=2 --infStreams=3 {manners}"
    )
