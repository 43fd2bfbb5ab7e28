"""The makers' own benchmarks on the same model file: a number that is not ours."""

from __future__ import annotations

import importlib.util
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..engine.manifest import MANIFEST, Manifest, read_manifest
from ..engine.openvino_backend import openvino_core, precision_hint
from .job import RowResult
from .process import run_alone

BENCHMARK_APP = (
    "from unetrt.contract.modules import import_module; import_module('openvino'); "
    "from openvino.tools.benchmark.main import main; raise SystemExit(main())"
)
"""What the script benchmark_app does, which need not be on the path, without its reports."""
PLAN_TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""Each reads the plans of its own flavour alone."""
START_SECONDS = 120.0
"""Allowed beyond the measurement, for the start of the program and its compiling."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Engine-only images a second of every repeat on the model file of the row `of`."""

    name: str
    of: str
    rates: list[float]
    reason: str = ""
    command: str = ""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def measure_peer(
    name: str, directory: Path, result: RowResult, seconds: float, repeats: int
) -> Peer | None:
    """benchmark_app for OpenVINO, trtexec for TensorRT, tensorrt_rtx for TensorRT-RTX, else None.

    A plan's slots in flight and CUDA graphs are those of the row; benchmark_app goes by its hint.
    """
    if not (directory / MANIFEST).is_file():
        return None
    manifest = read_manifest(directory)
    if manifest.backend == "openvino":
        tool, command_of, available = "benchmark_app", _benchmark_app, _has_benchmark_app()
    elif manifest.backend in PLAN_TOOLS:
        tool, command_of = PLAN_TOOLS[manifest.backend], _plan_tool
        available = shutil.which(tool) is not None
    else:
        return None
    peer = f"{tool} on {name}"
    if not available:
        return Peer(name=peer, of=name, rates=[], reason=f"{tool} is not installed")
    command = command_of(directory, manifest, result, seconds)
    return _run(peer, name, command, result.batch, seconds, repeats)


def _has_benchmark_app() -> bool:
    here = importlib.util.find_spec("openvino") is not None
    return here and importlib.util.find_spec("openvino.tools.benchmark") is not None


def _hint(precision: str) -> str:
    """The very hint that our engine takes here: f32 between int8 layers without bf16."""
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return precision_hint(able, precision)


def _benchmark_app(
    directory: Path, manifest: Manifest, result: RowResult, seconds: float
) -> list[str]:
    """The same file, static shape, precision hint and performance hint as our engine takes."""
    image, like = _shapes(manifest, result)
    return [
        *(sys.executable, "-c", BENCHMARK_APP),
        *("-m", str(directory / manifest.model)),
        *("-d", "CPU", "-hint", "throughput", "-infer_precision", _hint(manifest.precision)),
        *("-shape", f"image[{','.join(map(str, image))}],size_like[{','.join(map(str, like))}]"),
        *("-t", str(max(1, round(seconds)))),
    ]


def _plan_tool(directory: Path, manifest: Manifest, result: RowResult, seconds: float) -> list[str]:
    image, like = _shapes(manifest, result)
    return [
        PLAN_TOOLS[manifest.backend],
        f"--loadEngine={directory / manifest.model}",
        f"--shapes=image:{'x'.join(map(str, image))},size_like:{'x'.join(map(str, like))}",
        f"--duration={max(1, round(seconds))}",
        f"--infStreams={result.slots}",
        *_manners(manifest.backend, result.graphs),
    ]


def _manners(backend: str, graphs: bool) -> list[str]:
    """Without copies, waiting in a spin, with CUDA graphs or without.

    tensorrt_rtx does all three unless told otherwise:
    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/performance/benchmarking.html
    """
    if backend == "tensorrt-rtx":
        return [f"--rtxCudaGraphStrategy={'wholeGraph' if graphs else 'disable'}"]
    return ["--noDataTransfers", "--useSpinWait", *["--useCudaGraph"] * graphs]


def _shapes(manifest: Manifest, result: RowResult) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (result.batch, *result.input_size, manifest.spec.channels), result.mask_size


def _run(name: str, of: str, command: list[str], batch: int, seconds: float, repeats: int) -> Peer:
    rates: list[float] = []
    shown = _shown(command)
    for _ in range(repeats):
        try:
            child = run_alone(command, 2 * seconds + START_SECONDS, keep_errors=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Peer(name=name, of=of, rates=[], reason=str(error), command=shown)
        rate = rate_from_output(child.stdout, batch)
        if child.returncode or rate is None:
            last = (child.stderr or child.stdout).strip().splitlines()[-1:]
            reason = f"ended with status {child.returncode}: {''.join(last)}"
            return Peer(name=name, of=of, rates=[], reason=reason, command=shown)
        rates.append(rate)
    return Peer(name=name, of=of, rates=rates, command=shown)


def _shown(command: list[str]) -> str:
    """As one would type it, without the folders of this machine."""
    parts = ["benchmark_app", *command[3:]] if BENCHMARK_APP in command else command
    return " ".join(re.sub(r"(^|=)/\S*/", r"\1", part) for part in parts)


def rate_from_output(text: str, batch: int) -> float | None:
    """Images a second: benchmark_app counts images (FPS), TensorRT's tools batches (qps)."""
    found = re.search(r"Throughput:\s*([\d.]+)\s*(FPS|qps)", text)
    if found is None:
        return None
    return float(found.group(1)) * (batch if found.group(2) == "qps" else 1)
