"""What the bench computes without a model: arithmetic, clocks, peaks, the machine."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from unetrt.bench import machine, measure
from unetrt.bench import peak as peak_module
from unetrt.bench.flops import count_flops
from unetrt.bench.machine import OthersClock, describe_bench_machine, peak_host_bytes
from unetrt.bench.measure import (
    is_stable,
    latency,
    latency_from_seconds,
    rate,
    spread,
    warm_up,
)
from unetrt.bench.peak import measure_peaks, probe_peaks
from unetrt.bench.peaks import Peak, Peaks, peaks_from_dict
from unetrt.contract.cores import usable_cores
from unetrt.contract.spec import ModelSpec
from unetrt.engine.openvino_backend import openvino_core
from unetrt.training.step import cpu_computes_bf16
from unetrt.training.unet import UNet


@pytest.mark.parametrize(
    ("size", "giga"),
    [((100, 100), 14.3), ((200, 200), 58.4), ((512, 512), 385.4), ((640, 959), 898.6)],
)
def test_the_reference_net_has_the_known_arithmetic(size: tuple[int, int], giga: float) -> None:
    assert count_flops(ModelSpec(), size) / 1e9 == pytest.approx(giga, abs=0.05)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([1, 3]),
    st.integers(1, 5),
    st.sampled_from([2, 4, 6]),
    st.booleans(),
    st.integers(16, 70),
    st.integers(16, 70),
)
def test_the_count_is_that_of_pytorch(
    channels: int, classes: int, width: int, bilinear: bool, height: int, side: int
) -> None:
    net = UNet(channels, classes, width, bilinear).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, channels, height, side))
    spec = ModelSpec(channels=channels, classes=classes, width=width, bilinear=bilinear)
    assert count_flops(spec, (height, side)) == counter.get_total_flops()


def test_a_side_that_is_padded_counts_as_padded() -> None:
    spec = ModelSpec(width=4)
    assert count_flops(spec, (1, 3)) == count_flops(spec, (16, 16))


def test_percentiles_are_between_the_samples() -> None:
    found = latency_from_seconds([s / 1000 for s in range(1, 102)])
    assert (found.p50, found.p95, found.p99, found.count) == pytest.approx((51, 96, 100, 101))
    assert latency_from_seconds([0.25]).p99 == 250


def test_stable_means_that_the_last_samples_are_alike() -> None:
    assert is_stable([1, 50, 10, 10.5, 10, 9.5, 10])
    assert not is_stable([10, 10, 10, 10])
    assert not is_stable([10, 10, 10, 10, 12])
    assert not is_stable([])


def test_the_warm_up_ends_when_stable_and_never_later_than_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-6)
    done = warm_up(lambda: time.sleep(0.01) or 1, 5.0)  # type: ignore[func-returns-value]
    assert done.stable
    assert done.seconds < 5
    ever_slower = (0.002 * 1.5**i for i in itertools.count())
    slow = warm_up(lambda: time.sleep(0.01) or 1, 1e-4)  # type: ignore[func-returns-value]
    assert slow.seconds >= 0.05, "five samples, although none fits into the time"
    restless = warm_up(lambda: time.sleep(next(ever_slower)) or 1, 0.05)  # type: ignore[func-returns-value]
    assert not restless.stable
    assert restless.seconds >= 0.15


def test_rate_and_latency_count_calls() -> None:
    calls: list[int] = []

    def run() -> int:
        calls.append(1)
        time.sleep(0.005)
        return 4

    assert 100 < rate(run, 0.05) < 800
    calls.clear()
    assert latency(run, 0.001).count == len(calls) == measure.FEWEST_LATENCIES


def test_spread_is_half_the_range_over_the_median() -> None:
    assert spread([9, 10, 12]) == pytest.approx(0.15)
    assert spread([7]) == 0


def test_peaks_are_measured_in_every_precision_and_survive_json() -> None:
    found = measure_peaks("cpu", sides=(128,), seconds=0.01)
    precisions = {peak.precision for peak in found.products}
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bf16 = cpu_computes_bf16() or "BF16" in able
    assert precisions - {"int8"} == ({"fp32", "bf16"} if bf16 else {"fp32"})
    assert all(peak.ops > 1e8 for peak in found.products)
    assert all("128" in peak.by for peak in found.products), "of matrices, or convolutions"
    assert found.copy > 1e8
    assert found.of("fp7") is None
    for product in found.matrices:
        best = found.of(product.precision)
        assert best is not None
        assert best.ops > product.ops
        assert "matrix product" in product.by
    assert found.others is not None
    assert peaks_from_dict(json.loads(json.dumps(asdict(found)))) == found
    assert Peaks().of("fp32") is None


def test_the_share_of_matrix_products_is_told_beside_that_of_the_peak() -> None:
    best = (Peak("bf16", 3e12, "convolutions"), Peak("fp32", 1e12, "a product"))
    peaks = Peaks(best, matrices=(Peak("bf16", 2e12, "a product"),))
    assert peaks.share(1.5e12, "bf16").value == 0.5
    assert peaks.of_matrices(1.5e12, "bf16") == 0.75
    assert peaks.of_matrices(2.5e12, "bf16") == 1.25, "what convolves may be above it"
    assert peaks.of_matrices(5e11, "fp32") == 0.5
    assert peaks.of_matrices(5e11, "int8") is None
    assert replace(peaks, others=0.5).of_matrices(5e11, "fp32") is None


@pytest.mark.parametrize("work", [peak_module._Products(64), peak_module._Convolutions(16, 24)])
def test_products_and_convolutions_run_in_the_precision_that_they_stand_for(
    work: peak_module._Products | peak_module._Convolutions,
) -> None:
    """A layer that is fused into another would be counted and not computed."""
    for quantised in (False, True):
        model = peak_module._chain(work, quantised)
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert len(peak_module._precisions(compiled)) == peak_module.CHAIN
    assert {peak.precision for peak in peak_module._openvino_peaks(work, 0.01)} >= {"fp32"}


def test_a_probe_that_hangs_is_given_up_and_said_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = probe_peaks("cpu", timeout=0.01)
    assert (found.products, found.reason) == ((), "the probe was given up after 0 s")
    assert "measure what this device can do" in capsys.readouterr().err
    monkeypatch.setattr(peak_module.sys, "executable", "false")
    assert probe_peaks("cpu").reason == "the probe ended with status 1"


def test_the_machine_says_what_a_reader_asks() -> None:
    found = describe_bench_machine()
    assert {"processor", "features", "cores used", "clocks", "load before", "gpu"} <= found.keys()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert peak_host_bytes() > 2**20


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_who_keeps_the_cores_busy_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cores one is ours for a second, and the other somebody else's."""
    clock = OthersClock()
    assert clock.share() is None, "too soon to tell"
    now = iter([(0.0, 10.0, 1.0), (1.0, 12.0, 2.0), (7.0, 99.0, 3.0), (8.0, 100.0, 4.0)])
    monkeypatch.setattr(OthersClock, "_now", staticmethod(lambda: next(now)))
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    with clock.watching():
        pass
    assert clock.share() == 0.5
    with clock.watching():
        pass
    assert clock.share() == 0.25, "the second span was quiet, and between them nobody looked"


def test_the_kernels_ticks_grow_with_our_own_work() -> None:
    before = machine._busy_seconds()
    if not before:
        pytest.skip("this system does not tell how busy its cores are")
    spin(0.3)
    assert machine._busy_seconds() - before > 0.1
