"""Made-up benches, and pictures to run real ones on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import steel
from unetrt.bench.job import RowResult
from unetrt.bench.judge import Judgement
from unetrt.bench.measure import Latency, WarmUp
from unetrt.bench.peaks import Peak, Peaks
from unetrt.bench.peers import Peer
from unetrt.bench.result import Bench, Row
from unetrt.bench.samples import Samples
from unetrt.bench.stages import Stage, StageTable
from unetrt.bench.sweep import Sweep, SweepPoint
from unetrt.contract.types import Size


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of two sizes."""
    folder = tmp_path_factory.mktemp("imgs")
    for index in range(5):
        picture = steel(index, 48 if index % 2 else 40, 56)
        Image.fromarray(picture[..., 0]).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row_result(name: str, rates: list[float], precision: str = "fp32") -> RowResult:
    stage = Stage(name="decode", where="load threads", threads=2, seconds=0.5, busy=0.25, cpu=0.2)
    wait = Stage(name="wait", where="main thread", threads=1, seconds=1.0, busy=1.0)
    return RowResult(
        name=name,
        label=f"{name} {precision} on cpu",
        precision=precision,
        device="cpu",
        batch=1,
        slots=2,
        input_size=(100, 90),
        mask_size=(200, 180),
        flops=10**9,
        open_seconds=0.5,
        first_seconds=0.25,
        warm_up=WarmUp(seconds=0.1, stable=True),
        engine_only=[2 * rate for rate in rates],
        with_copies=[2 * rate for rate in rates],
        files_to_files=rates,
        latency=Latency(p50=1.0, p95=2.0, p99=3.0, count=40),
        host_bytes=100 * 2**20,
        stages=StageTable(
            wall=1.0,
            images=7,
            stages=(stage, wait),
            bottleneck="engine",
            bound=20.0,
            shared_bound=18.0,
            cores=0.95,
            cores_alone=0.99,
        ),
    )


def sweep_point(
    batch: int, slots: int, rate: float, p99: float, size: Size = (200, 180)
) -> SweepPoint:
    latency = Latency(p50=p99 / 2, p95=p99 / 1.5, p99=p99, count=200, slowest=p99)
    return SweepPoint(size=size, batch=batch, slots=slots, rate=rate, latency=latency)


@pytest.fixture
def sweep() -> Sweep:
    points = (
        sweep_point(1, 1, 50, 10),
        sweep_point(1, 2, 97, 15),
        sweep_point(2, 1, 96, 14),
        sweep_point(4, 2, 100, 40),
        sweep_point(1, 2, 390, 4, (100, 90)),
        sweep_point(2, 2, 400, 8, (100, 90)),
    )
    return Sweep(model="engine", points=points, size=(200, 180))


@pytest.fixture
def bench() -> Bench:
    """Made-up numbers: a baseline, a fast engine, one with wrong masks, one that did not open."""
    same = Judgement(agreement=1.0, iou={"a": 1.0, "b": 1.0})
    near = Judgement(agreement=0.99995, iou={"a": 0.999, "b": None})
    rows = (
        Row(
            name="reference",
            result=row_result("loop", [9, 10, 11]),
            agreement=1.0,
            trusted=True,
            judgement=same,
        ),
        Row(
            name="openvino",
            result=row_result("openvino", [40]),
            agreement=0.99995,
            trusted=True,
            judgement=near,
            build_seconds=3.0,
        ),
        Row(name="wrong", result=row_result("wrong", [90]), agreement=0.5, reason="agreement low"),
        Row(name="gone", reason="no such | file"),
    )
    return Bench(
        rows=rows,
        images=7,
        machine={"processor": "Maker X/1, 2 cores"},
        versions={"torch": "2.13.0+cpu", "openvino": "2026.4", "onnxruntime": "1.31", "ov": ""},
        peaks=Peaks((Peak("fp32", 1e12, "a matrix product of 9"),), copy=3e10),
        peers=(
            Peer(name="tool on openvino", of="openvino", rates=[100.0]),
            Peer(name="other on wrong", of="wrong", rates=[], reason="not installed"),
        ),
        samples=Samples(((("image", np.full((8, 8, 3), 9, np.uint8)),),)),
    )
