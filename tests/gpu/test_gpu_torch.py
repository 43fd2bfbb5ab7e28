"""An engine directory of PyTorch on an NVIDIA GPU: fused, pooled by our kernel, replayed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT, balanced_checkpoint
from tests.export.test_repair import scaled
from tests.gpu.test_gpu import PICTURES, agreement, masks_of
from tests.gpu.torch_graphs import (
    CASES,
    new_slots_take_no_new_memory,
    three_slots_in_flight_keep_their_own_masks,
)
from unetrt.contract.types import NO_CLASS
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.engine.probe import choose_backend, probe_backends
from unetrt.engine.torch_fused import _ConvRelu
from unetrt.engine.torch_pooling import _kernel, halved
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.onnx_export import BLOCKS
from unetrt.training.checkpoint import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

Files = Callable[..., Path]


@pytest.fixture(scope="module", params=[{"width": 8}, {"width": 16, "bilinear": True}, {}])
def built(
    request: pytest.FixtureRequest, checkpoint_file: Files, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(checkpoint, engine directory); untrained networks have thin margins."""
    checkpoint = checkpoint_file(**request.param)
    directory = tmp_path_factory.mktemp("torch") / "engine"
    options = BuildOptions(backend="torch", gate=GateOptions(min_agreement=0.98))
    built = build_engine(checkpoint, directory, options)
    assert built.gate.verdict == "passed"
    assert built.manifest.precision == "fp16"
    return checkpoint, directory


@pytest.fixture
def engine(built: tuple[Path, Path]) -> Iterator[Engine]:
    with open_engine(built[1]) as found:
        assert found.device == "cuda"
        assert found.graphs is False
        yield found


def test_auto_takes_it_where_there_is_no_tensorrt() -> None:
    plans = [s for s in probe_backends() if s.name.startswith("tensorrt") and s.runs and s.builds]
    if plans:
        pytest.skip(f"{plans[0].name} is here")
    assert choose_backend()[0] == "torch"


def test_its_masks_are_those_of_the_cpu(built: tuple[Path, Path], engine: Engine) -> None:
    with open_engine(built[0], device="cpu") as cpu:
        assert agreement(masks_of(engine, PICTURES), masks_of(cpu, PICTURES)) > 0.99


def test_blocks_in_fp32_are_not_in_tf32(checkpoint_file: Files, tmp_path: Path) -> None:
    """Which rounds as fp16 does: all of them together give the masks of fp32."""
    gate = GateOptions(min_agreement=0.999)
    options = BuildOptions(backend="torch", fp32_blocks=BLOCKS, gate=gate)
    built = build_engine(checkpoint_file(width=8), tmp_path / "engine", options)
    assert built.gate.agreement > 0.9999


def test_an_image_that_overflows_has_no_mask(tmp_path: Path) -> None:
    """Infinities of one layer are no numbers in the next, of which a ReLU might make 0."""
    write_checkpoint(tmp_path / "c.pth", scaled(balanced_checkpoint(width=8), "up2.conv", 2.0**20))
    options = BuildOptions(backend="torch", fp32_blocks=(), gate=GateOptions(force=True))
    built = build_engine(tmp_path / "c.pth", tmp_path / "engine", options)
    assert built.gate.not_finite
    with open_engine(tmp_path / "engine") as engine:
        assert all((masks == NO_CLASS).all() for masks in masks_of(engine, PICTURES))


CHANNELS = [(1, 8), (3, 16), (8, 8), (64, 64)]


@pytest.mark.parametrize("channels", CHANNELS)
def test_what_memory_held_before_does_not_matter(channels: tuple[int, int]) -> None:
    """cuDNN is given the result's own memory too, as a summand that counts for nothing."""
    layer, x = layer_and_features(*channels)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1).relu()
    layer(x)  # asks cuDNN first, in memory of its own
    for value in (float("nan"), float("inf")):
        junk = [torch.full_like(expected, value) for _ in range(8)]
        del junk
        place = torch.empty_like(expected)
        assert not place.isfinite().any()
        address = place.data_ptr()
        del place
        found = layer(x)
        assert all(layer.fuses.values())
        assert found.data_ptr() == address
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("channels", CHANNELS)
def test_what_is_no_number_stays_none(channels: tuple[int, int]) -> None:
    layer, x = layer_and_features(*channels)
    x[0, 0, 20, 20], x[1, 0, 30, 30] = float("nan"), float("inf")
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1).relu()
    lost = expected.isfinite().logical_not()
    assert lost.any()
    assert layer(x).isfinite().logical_not()[lost].all()


def layer_and_features(inputs: int, outputs: int) -> tuple[_ConvRelu, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    layer = _ConvRelu(weight.half(), torch.randn(outputs, generator=generator).half())
    x = torch.randn(2, inputs, 75, 101, generator=generator).half()
    last = torch.channels_last
    return layer.cuda().to(memory_format=last), x.cuda().contiguous(memory_format=last)  # type: ignore[call-overload]


def test_three_slots_in_flight(engine: Engine) -> None:
    three_slots_in_flight_keep_their_own_masks(engine, graphs=False)


def test_new_slots(engine: Engine) -> None:
    new_slots_take_no_new_memory(engine, graphs=False)


def run_alone(directory: Path, case: str) -> None:
    """In a process of its own: what goes wrong in a capture may end it, or all that it does."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed: slots have no streams of their own")
    command = [sys.executable, "-m", "tests.gpu.torch_graphs", str(directory), case]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"


def test_three_slots_in_flight_with_graphs(built: tuple[Path, Path]) -> None:
    run_alone(built[1], three_slots_in_flight_keep_their_own_masks.__name__)


@pytest.fixture(scope="module")
def directory(checkpoint_file: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "engine"
    options = BuildOptions(backend="torch", gate=GateOptions(min_agreement=0.98))
    build_engine(checkpoint_file(width=8), path, options)
    return path


def test_engines_that_are_closed_leave_no_memory(directory: Path) -> None:
    """PyTorch and cuBLAS keep some by stream, and every engine has streams of its own."""

    def use_engines(count: int) -> None:
        for _ in range(count):
            with open_engine(directory) as engine:
                masks_of(engine, 4)

    use_engines(3)
    before = torch.cuda.mem_get_info()[0]
    use_engines(12)
    assert before - torch.cuda.mem_get_info()[0] < 32 << 20


@pytest.mark.parametrize("case", list(CASES)[1:])
def test_graphs(directory: Path, case: str) -> None:
    run_alone(directory, case)


@pytest.mark.parametrize("shape", [(2, 8, 33, 50), (1, 64, 2, 3), (3, 40, 101, 7)])
def test_the_kernel_gives_the_maxima(shape: tuple[int, ...]) -> None:
    if torch.cuda.get_device_capability() >= (8, 0):
        assert _kernel(0) is not None
    numbers = np.random.default_rng(0).normal(0, 1000, shape).astype(np.float16)
    numbers[numbers > 1500] = np.nan
    x = torch.from_numpy(numbers).contiguous(memory_format=torch.channels_last)
    found = halved(x.cuda()).cpu()
    torch.testing.assert_close(found, F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)
