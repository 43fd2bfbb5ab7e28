"""Device memory by one rule, on stand-ins for what reads it: no GPU is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench.conftest import row_result
from unetrt.bench import device_memory
from unetrt.bench import row as row_module
from unetrt.bench.device_memory import (
    NVML,
    RUNTIME,
    SECONDS,
    place_of,
    reader_of,
    watch_memory,
)
from unetrt.bench.job import REFERENCE, RowJob, RowResult, result_from_dict
from unetrt.bench.report import detail_lines
from unetrt.bench.result import Bench, Row
from unetrt.bench.row import measure_row
from unetrt.contract.errors import UserError

MIB = 2**20


@dataclass
class Gpu:
    """used: bytes that are taken; closed: the reader was given back."""

    used: int = 100 * MIB
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def hold(self, mib: int) -> None:
        """Until several samples have seen it."""
        self.used += mib * MIB
        time.sleep(10 * SECONDS)
        self.used -= mib * MIB


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()
    monkeypatch.setattr(device_memory, "cuda_devices", lambda: 1)
    reader = (NVML, lambda: gpu.used, gpu.close)
    monkeypatch.setattr(device_memory, "reader_of", lambda place: reader)
    monkeypatch.setattr(row_module, "model_bytes", lambda model: 1)  # there is none
    yield gpu
    assert gpu.closed


def job_of(backend: str) -> RowJob:
    return RowJob(
        name="x",
        model="m",
        backend=backend,
        device="auto",
        images=[],
        outputs=[],
        seconds=1.0,
        repeats=1,
    )


@pytest.mark.parametrize(
    ("backend", "step"), [(REFERENCE, "_measure_reference"), ("auto", "_measure_opened")]
)
def test_reference_and_engines_count_from_before_they_open_to_their_peak(
    backend: str, step: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights stay, a workspace comes and goes: the row's number holds both, in either row."""

    def measure(job: RowJob) -> RowResult:
        gpu.used += 30 * MIB
        gpu.hold(500)
        return replace(row_result("x", [1.0]), device="NVIDIA X (cuda:0)")

    monkeypatch.setattr(row_module, step, measure)
    result = measure_row(job_of(backend))
    assert result.device_bytes == 530 * MIB, "not the 100 that were taken by others before it"
    assert result.memory_by == NVML
    assert result_from_dict(json.loads(json.dumps(asdict(result)))) == result


def test_a_row_of_the_cpu_has_none_on_a_machine_with_a_gpu(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_module, "_measure_opened", lambda job: row_result("x", [1.0]))
    result = measure_row(job_of("auto"))
    assert (result.device_bytes, result.memory_by) == (None, "")


def test_a_row_that_fails_gives_the_reader_back(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: RowJob) -> RowResult:
        raise UserError("no memory")

    monkeypatch.setattr(row_module, "_measure_opened", fails)
    with pytest.raises(UserError, match="no memory"):
        measure_row(job_of("auto"))


@pytest.mark.parametrize(
    ("device", "gpus", "place"),
    [
        ("cpu", 2, ""),
        ("auto", 0, ""),
        ("cuda", 0, ""),
        ("auto", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda", 2, "cuda"),
    ],
)
def test_the_gpu_that_a_row_may_run_on_is_watched(
    device: str, gpus: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "cuda_devices", lambda: gpus)
    assert place_of(device) == place
    if not place:
        with watch_memory(device) as watch:
            pass
        assert watch.taken is None


def test_nvml_is_asked_first_and_cuda_where_it_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        pass

    answers: list[Callable[[], int]] = [lambda: 7]

    def info(handle: str) -> SimpleNamespace:
        assert handle == "handle of cuda:1"
        return SimpleNamespace(used=answers[-1]())

    def lost() -> int:
        raise NVMLError

    nvml = SimpleNamespace(NVMLError=NVMLError, nvmlDeviceGetMemoryInfo=info, nvmlShutdown=list)
    monkeypatch.setattr(device_memory, "import_module", lambda name: nvml)
    monkeypatch.setattr(device_memory, "gpu_handle", lambda nvml, place: f"handle of {place}")
    by, read, _ = reader_of("cuda:1")
    assert (by, read()) == (NVML, 7)
    answers.append(lost)
    assert read() is None, "a look that fails is no look"

    def missing(name: str) -> None:
        raise UserError("the package pynvml is needed here")

    monkeypatch.setattr(device_memory, "import_module", missing)
    monkeypatch.setattr(device_memory, "device_bytes_in_use", lambda place: 9)
    by, read, _ = reader_of("cuda:1")
    assert (by, read()) == (RUNTIME, 9)


def test_the_definition_stands_under_the_table(bench: Bench, tmp_path: Path) -> None:
    result = replace(
        row_result("x", [10.0]), device="X (cuda:0)", device_bytes=530 * MIB, memory_by=NVML
    )
    lines = detail_lines(replace(bench, rows=(Row(name="x", result=result),)))
    assert "530" in lines[2]
    assert lines[3] == ""
    assert "less what was taken before it" in lines[4]
    assert "NVML, every 0.02 s; CUDA's context is in it" in lines[4]
    assert len(detail_lines(bench)) == 2 + 3, "none of a CPU"
    other = replace(result, memory_by=RUNTIME)
    text = "\n".join(detail_lines(replace(bench, rows=(Row(name="x", result=other),))))
    assert "is not in it" in text
