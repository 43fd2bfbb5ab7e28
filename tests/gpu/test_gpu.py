"""On an NVIDIA GPU: real copies, real overlap, real plans."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.conftest import steel
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.onnxruntime_cuda import CUDA, OnnxRuntimeCudaEngine
from unetrt.engine.open import open_engine
from unetrt.engine.probe import probe_backends
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import read_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

SIZES: tuple[Size, ...] = ((64, 64), (40, 72), (33, 17))


PICTURES = 24


@cache
def picture(index: int) -> U8:
    return steel(index, *SIZES[index % len(SIZES)])


def masks_of(engine: Engine, count: int, first: int = 0) -> list[U8]:
    """Pictures through two slots that are kept in flight, of changing sizes."""
    slots = [engine.slot() for _ in range(2)]
    masks: list[U8] = []
    for index in range(first, first + count + len(slots)):
        slot = slots[index % len(slots)]
        if index >= first + len(slots):
            masks.append(slot.masks()[0].copy())
        if index < first + count:
            image = picture(index % PICTURES)
            size = (image.shape[0], image.shape[1])
            slot.reserve(2, size)[:] = image
            slot.submit(1, size)
    for slot in slots:
        slot.close()
    return masks


def agreement(found: list[U8], expected: list[U8]) -> float:
    equal = [np.mean(a == b) for a, b in zip(found, expected, strict=True)]
    return float(np.mean(equal))


@pytest.fixture
def reference(checkpoint_file: Callable[..., Path]) -> list[U8]:
    with open_engine(checkpoint_file(), device="cpu") as engine:
        return masks_of(engine, PICTURES)


def test_pytorch_gives_the_masks_of_the_cpu(
    checkpoint_file: Callable[..., Path], reference: list[U8]
) -> None:
    with open_engine(checkpoint_file(), device="cuda") as engine:
        assert engine.precision == (
            "tf32" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
        )
        assert agreement(masks_of(engine, PICTURES), reference) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_gives_the_masks_of_the_cpu(
    precision: str,
    exported: Callable[..., Path],
    checkpoint_file: Callable[..., Path],
    reference: list[U8],
) -> None:
    """Copies and network on our streams; biases apart, and fused."""
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider: onnxruntime-gpu has")
    least = 0.999 if precision == "fp32" else 0.998
    for fused in (False, True):
        spec = read_checkpoint(checkpoint_file()).spec
        file = exported(precision)
        with OnnxRuntimeCudaEngine(file, spec, precision, "cuda", fused=fused) as engine:
            assert agreement(masks_of(engine, PICTURES), reference) > least


def test_threads_share_the_device_with_torch(
    checkpoint_file: Callable[..., Path], reference: list[U8]
) -> None:
    found: dict[int, float] = {}
    with open_engine(checkpoint_file(), device="cuda") as engine:

        def work(thread: int) -> None:
            torch.ones(1000, device="cuda").sum().item()
            found[thread] = agreement(masks_of(engine, PICTURES), reference)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert min(found.values()) > 0.999


def test_ten_thousand_batches_do_not_grow_device_memory(
    checkpoint_file: Callable[..., Path],
) -> None:
    with open_engine(checkpoint_file(), device="cuda") as engine:
        masks_of(engine, 100)
        before = torch.cuda.mem_get_info()[0]
        masks_of(engine, 10_000)
        assert before - torch.cuda.mem_get_info()[0] < 1 << 20


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_is_built_judged_and_run(
    backend: str, precision: str, checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    status = {s.name: s for s in probe_backends()}[backend]
    if not (status.builds and status.runs):
        pytest.skip(f"{backend}: {status.detail}")
    options = BuildOptions(
        backend=backend,
        precision=precision,
        gate=GateOptions(min_agreement=0.98),
        plan=PlanOptions(batch=(1, 2, 4), sizes=((256, 320), *SIZES)),
    )
    built = build_engine(checkpoint_file(), tmp_path / "plan", options)
    assert built.gate.verdict == "passed"
    with (
        open_engine(tmp_path / "plan") as engine,
        open_engine(checkpoint_file(), device="cpu") as cpu,
    ):
        assert agreement(masks_of(engine, PICTURES), masks_of(cpu, PICTURES)) > 0.98


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_static_shape_is_replayed_as_a_cuda_graph(
    backend: str, checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    status = {s.name: s for s in probe_backends()}[backend]
    if not (status.builds and status.runs):
        pytest.skip(f"{backend}: {status.detail}")
    options = BuildOptions(
        backend=backend, precision="fp16", plan=PlanOptions(batch=(1, 2, 4), sizes=SIZES)
    )
    build_engine(checkpoint_file(), tmp_path / "plan", options)
    with open_engine(tmp_path / "plan") as engine:
        slot = engine.slot()
        assert isinstance(slot, CudaSlot)
        for height, width in (SIZES[0], SIZES[1], SIZES[0]):
            masks: dict[int, U8] = {}
            for index in (0, 1, 0, 1, 0):  # as it is, captured, replayed
                slot.reserve(2, (height, width))[:] = steel(index, height, width)
                slot.submit(2, (height, width))
                found = slot.masks().copy()
                assert np.array_equal(found, masks.setdefault(index, found))
            assert slot._replay.refused == ""
            assert slot._replay._graph is not None
            assert not np.array_equal(masks[0], masks[1])
        slot.close()
