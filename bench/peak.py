"""What this device can do at most, measured in each precision, and a copy."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..contract.cores import granted_threads
from ..contract.errors import first_line
from ..contract.modules import import_module, is_installed
from ..engine.openvino_backend import openvino_core
from .machine import OthersClock, wants_cuda
from .peaks import Peak, Peaks, peaks_from_dict
from .process import end_with_parent, run_alone
from .stock import TF32

SIDES = (512, 768, 1024, 2048)
GPU_SIDES = (2048, 4096, 8192)
"""Of the square matrices: the best of all counts."""
CHANNELS, PIXELS = 128, 64
"""Of 3×3 convolutions and their square images: on AMX the best product of matrices had 2.0 to 2.3
Tops/s in bf16 from run to run, these 2.85."""
CHAIN = 8
"""Of them in a row, as layers follow one another: of one alone a third of the time goes into
turning its floats into bytes or bfloat16, and a network would exceed such a peak."""
SECONDS = 0.4
COPY_BYTES = 2**28
PROBE_SECONDS = 240.0
"""After which the probe is given up: it takes some ten seconds, on a crowded machine a minute."""


def probe_peaks(
    device: str = "auto", seconds: float = SECONDS, timeout: float = PROBE_SECONDS
) -> Peaks:
    """Run the probe in a process of its own; empty, with the reason, when it fails.

    seconds: of each product, at most SECONDS.
    """
    sys.stderr.write("bench: measure what this device can do at most\n")
    command = [sys.executable, "-m", "unetrt.bench.peak", device, str(min(seconds, SECONDS))]
    try:
        child = run_alone(command, timeout)
    except subprocess.TimeoutExpired:
        return Peaks(reason=f"the probe was given up after {timeout:.0f} s")
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        return Peaks(reason=f"the probe ended with status {child.returncode}")
    return peaks_from_dict(json.loads(lines[-1]))


def measure_peaks(
    device: str, sides: tuple[int, ...] | None = None, seconds: float = SECONDS
) -> Peaks:
    """The best of PyTorch and OpenVINO in each precision, on all cores or on the GPU."""
    on_gpu = wants_cuda(device)
    place = ("cuda" if device == "auto" else device) if on_gpu else "cpu"
    best: dict[str, Peak] = {}
    clock = OthersClock()
    for side in sides or (GPU_SIDES if on_gpu else SIDES):
        with clock.watching():
            found = _torch_peaks(side, seconds, place)
            if not on_gpu and is_installed("openvino"):
                found += _openvino_peaks(_Products(side), seconds)
        _keep_best(best, found)
    matrices = dict(best)
    if not on_gpu and is_installed("openvino"):
        with clock.watching():
            _keep_best(best, _openvino_peaks(_Convolutions(CHANNELS, PIXELS), seconds))
    with clock.watching():
        copy = _copy_rate(seconds, place)
    others = None if on_gpu else clock.share()
    lower = tuple(peak for peak in matrices.values() if peak != best[peak.precision])
    return Peaks(tuple(best.values()), copy, others=others, on_gpu=on_gpu, matrices=lower)


def _keep_best(best: dict[str, Peak], found: list[Peak]) -> None:
    for peak in found:
        if peak.precision not in best or best[peak.precision].ops < peak.ops:
            best[peak.precision] = peak


def _torch_peaks(side: int, seconds: float, device: str) -> list[Peak]:
    import torch

    from ..training.step import cpu_computes_bf16

    found = []
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device == "cpu" and not cpu_computes_bf16():
        del precisions["bf16"]  # what emulates it says nothing of the processor
    if device != "cpu":
        precisions |= {"fp16": torch.float16, TF32: torch.float32}
    for precision, dtype in precisions.items():
        torch.backends.cuda.matmul.allow_tf32 = precision == TF32
        # Equal numbers switch fewer transistors than a network's: a GPU would clock higher.
        a = torch.randn(side, side, device=device).to(dtype)
        b, c = a.clone(), torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, c: torch.Tensor = c) -> None:
            torch.mm(a, b, out=c)

        ops = 2 * side**3 / _fastest_on(device, product, seconds)
        found.append(Peak(precision, ops, f"PyTorch matrix product of {side}"))
    return found


@dataclass(frozen=True)
class _Products:
    """CHAIN products of square matrices of floats."""

    side: int

    @property
    def shape(self) -> list[int]:
        return [self.side, self.side]

    @property
    def weights(self) -> tuple[int, ...]:
        return (self.side, self.side)

    @property
    def ops(self) -> int:
        return 2 * self.side**3

    def layer(self, ops: Any, image: Any, weights: Any) -> Any:
        return ops.matmul(image, weights, False, True)

    def __str__(self) -> str:
        return f"matrix products of {self.side}"


@dataclass(frozen=True)
class _Convolutions:
    """CHAIN convolutions of a square image of floats, 3×3, as many channels out as in."""

    channels: int
    pixels: int

    @property
    def shape(self) -> list[int]:
        return [1, self.channels, self.pixels, self.pixels]

    @property
    def weights(self) -> tuple[int, ...]:
        return (self.channels, self.channels, 3, 3)

    @property
    def ops(self) -> int:
        return 2 * math.prod(self.weights) * self.pixels**2

    def layer(self, ops: Any, image: Any, weights: Any) -> Any:
        return ops.convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])

    def __str__(self) -> str:
        return f"3×3 convolutions of {self.channels} channels, {self.pixels}×{self.pixels}"


def _openvino_peaks(work: _Products | _Convolutions, seconds: float) -> list[Peak]:
    """A precision counts only where all that was compiled runs in it, by its own word."""
    openvino = import_module("openvino")
    core = openvino_core()
    config: dict[str, Any] = {}
    if (threads := granted_threads()) is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    found = []
    for precision, hint, runs_in in (
        ("fp32", "f32", "f32"),
        ("bf16", "bf16", "bf16"),
        ("int8", "f32", "i8"),
    ):
        model = _chain(work, quantised=precision == "int8")
        compiled = core.compile_model(model, "CPU", config | {"INFERENCE_PRECISION_HINT": hint})
        if set(_precisions(compiled)) != {runs_in}:
            continue
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ones(work.shape, np.float32)))
        ops = CHAIN * work.ops / _fastest(request.infer, seconds)
        found.append(Peak(precision, ops, f"OpenVINO, {CHAIN} {work}"))
    return found


def _chain(work: _Products | _Convolutions, quantised: bool) -> Any:
    """By constants, between quantisers where int8 is asked for."""
    openvino = import_module("openvino")
    ops = openvino.opset13
    image = ops.parameter(work.shape, np.float32)
    low, top = ops.constant(np.float32(-1)), ops.constant(np.float32(127 / 128))
    random = np.random.default_rng(0)
    spread = (3 / math.prod(work.weights[1:])) ** 0.5  # results as large as inputs
    result = image
    for _ in range(CHAIN):
        values = random.uniform(-spread, spread, work.weights).astype(np.float32)
        a, b = result, ops.constant(values)
        if quantised:
            a = ops.fake_quantize(a, low, top, low, top, 256)
            least, most = (ops.constant(np.float32(bound)) for bound in (-spread, spread))
            b = ops.fake_quantize(b, least, most, least, most, 255)
        result = work.layer(ops, a, b)
    return openvino.Model([result], [image])


def _precisions(compiled: Any) -> list[str]:
    """Of the layers that compute."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    infos = [node.get_rt_info() for node in nodes]
    return [
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]


def _copy_rate(seconds: float, device: str) -> float:
    import torch

    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return 2 * COPY_BYTES / _fastest_on(device, copy, seconds)


def _fastest_on(device: str, run: Callable[[], object], seconds: float) -> float:
    """As _fastest; on a GPU by events around many calls, which their launches do not lengthen."""
    if device == "cpu":
        return _fastest(run, seconds)
    from .cuda_clock import torch_rate

    def counted() -> int:
        run()
        return 1

    counted()
    rates: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        rates.append(torch_rate(counted, device, seconds / 10))
    return 1 / max(rates)


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest call: a peak is what nothing disturbed."""
    run()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
    return best


def main() -> int:
    """Print the peaks of the device named as JSON, in the last line."""
    end_with_parent()
    try:
        found = measure_peaks(sys.argv[1], seconds=float(sys.argv[2]))
    except (RuntimeError, AssertionError, MemoryError) as error:
        found = Peaks(reason=first_line(error))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
