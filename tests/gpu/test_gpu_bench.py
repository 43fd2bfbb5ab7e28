"""The bench on an NVIDIA GPU: its own clock, NVML, the profiler and the steps of the waterfall."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import steel
from unetrt.bench.engine_row import measure_engine
from unetrt.bench.filled import Batch, FilledSlots
from unetrt.bench.flops import count_flops
from unetrt.bench.job import REFERENCE, RowJob
from unetrt.bench.machine import cuda_device
from unetrt.bench.nvml import watch_device
from unetrt.bench.peak import measure_peaks
from unetrt.bench.profilers import profile_layers
from unetrt.bench.row import measure_row
from unetrt.bench.rows import entries_from_checkpoint
from unetrt.engine.open import open_engine
from unetrt.engine.probe import probe_backends
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.tensorrt_build import PlanOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

SIZE = (64, 96)
Files = Callable[..., Path]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(12)]
    for index, path in enumerate(paths):
        Image.fromarray(steel(index, *SIZE)[..., 0]).save(path)
    return paths


def job_of(model: Path, pictures: list[Path], backend: str = "auto") -> RowJob:
    return RowJob(
        name="row",
        model=str(model),
        backend=backend,
        device="cuda",
        images=[str(path) for path in pictures],
        outputs=[str(path.with_name(f"mask-{path.stem}.png")) for path in pictures],
        seconds=0.2,
        repeats=3,
        layers=True,
    )


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def plan(request: pytest.FixtureRequest, checkpoint_file: Files, tmp_path: Path) -> Path:
    status = {s.name: s for s in probe_backends()}[request.param]
    if not (status.builds and status.runs):
        pytest.skip(f"{request.param}: {status.detail}")
    options = BuildOptions(
        backend=request.param,
        precision="fp16",
        gate=GateOptions(force=True),
        plan=PlanOptions(batch=(1, 4, 8), sizes=(SIZE,)),
    )
    build_engine(checkpoint_file(), tmp_path / "plan", options)
    return tmp_path / "plan"


@pytest.mark.parametrize("backend", [REFERENCE, "auto", "torch-half"])
def test_pytorchs_rows_are_timed_by_events(
    backend: str, checkpoint_file: Files, pictures: list[Path]
) -> None:
    result = measure_row(job_of(checkpoint_file(), pictures, backend))
    assert cuda_device(result.device)
    assert len(result.with_copies) >= 3
    assert min(result.with_copies) > 0
    on_streams = backend == REFERENCE or importlib.util.find_spec("pycuda") is not None
    assert len(result.engine_only) == (len(result.with_copies) if on_streams else 0)
    assert result.device_bytes is not None


def test_a_plan_is_measured_with_power_and_layers(plan: Path, pictures: list[Path]) -> None:
    with open_engine(plan, device="cuda") as engine:
        result = measure_engine(engine, job_of(plan, pictures), 1.0)
    assert len(result.engine_only) == len(result.with_copies) >= 3
    assert len(result.of_engine) == len(result.files_to_files)
    assert result.layers is not None
    assert 0 < result.layers.total <= 1.05 * result.layers.wall
    if importlib.util.find_spec("pynvml") is not None:
        assert result.use is not None, result.use_reason
        assert result.use.watts is not None
        assert result.use.memory > 0


def test_the_profiler_finds_the_networks_convolutions(plan: Path) -> None:
    """A plan may fuse them; then there is no arithmetic, and that is said."""
    batch = Batch([steel(i, *SIZE) for i in range(4)], SIZE)
    with open_engine(plan, device="cuda") as engine:
        table = profile_layers(engine, batch, 0.2)
        spec = engine.spec
    assert table is not None
    assert table.layers
    known = sum(layer.flops or 0 for layer in table.layers)
    assert known in (0, 4 * count_flops(spec, SIZE))


@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_are_as_the_step_asks(plan: Path, graphs: bool, pictures: list[Path]) -> None:
    with open_engine(plan, device="cuda") as engine:
        engine.graphs = graphs
        batch = Batch([steel(i, *SIZE) for i in range(4)], SIZE)
        with FilledSlots(engine, batch, 1) as slots:
            for _ in range(4):
                slots.turn()
            slots.drain()
            (slot,) = slots.slots
            assert (slot._replay._graph is not None) == graphs  # type: ignore[attr-defined]


def test_the_steps_of_the_waterfall_share_one_plan(
    checkpoint_file: Files, pictures: list[Path], tmp_path: Path
) -> None:
    entries = entries_from_checkpoint(checkpoint_file(), tmp_path / "engines", [SIZE], "cuda")
    for backend in ("tensorrt", "tensorrt-rtx"):
        steps = [e for e in entries if e.name.startswith(f"{backend}-fp16")]
        assert len(steps) == 4
        reasons = {step.reason for step in steps}
        assert len(reasons) == 1, "all of them run, or none"


def test_nvml_tells_of_this_gpu() -> None:
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("nvidia-ml-py is not installed")
    with watch_device("cuda:0") as watch:
        torch.ones(1 << 24, device="cuda").sum().item()
    assert watch.reason == ""
    assert watch.use is not None
    assert watch.use.memory > 0


def test_a_half_product_is_faster_than_a_whole_one() -> None:
    peaks = measure_peaks("cuda", sides=(4096,), seconds=0.2)
    whole, half = peaks.of("fp32"), peaks.of("fp16")
    assert whole is not None
    assert half is not None
    assert half.ops > whole.ops
