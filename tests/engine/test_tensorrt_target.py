"""Which GPU a plan runs on, and which images it takes: stand-ins for the GPU and for TensorRT."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine import probe, tensorrt_backend
from unetrt.engine.manifest import Manifest
from unetrt.engine.tensorrt_backend import (
    TensorRtEngine,
    check_target,
    gpu_of_machine,
    plan_runs_here,
)

ADA = {"name": "NVIDIA L4", "driver": "13.0", "capability": "sm89"}


def manifest_of(**target: Any) -> Manifest:
    return Manifest(
        spec=ModelSpec(channels=1, classes=4, scale=0.5),
        backend="tensorrt",
        backend_version="11.0",
        precision="fp16",
        model="model.plan",
        files={},
        source={},
        gate={},
        target={"compute_capabilities": ["sm89"], "gpu": ADA, **target},
    )


class Plan:
    """Two profiles, as TensorRT tells them."""

    num_optimization_profiles = 2
    SHAPES = (
        {"image": [(1, 32, 32, 1), (4, 32, 32, 1), (8, 64, 32, 1)], "size_like": [(64, 64)] * 3},
        {"image": [(1, 9, 9, 1), (4, 9, 9, 1), (8, 9, 9, 1)], "size_like": [(18, 18)] * 3},
    )

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return self.SHAPES[index][name]


class Gpu:
    """A machine with one GPU."""

    def __init__(self, name: str, capability: str, version: int) -> None:
        self.capability, self.version = capability, version
        self.device = SimpleNamespace(name=lambda: name)
        self.name, self.closed = name, 0

    @contextmanager
    def current(self) -> Iterator[Any]:
        yield SimpleNamespace(get_driver_version=lambda: self.version)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(name: str = "NVIDIA L4", capability: str = "sm89", version: int = 13000) -> Gpu:
        gpu = Gpu(name, capability, version)
        trt = SimpleNamespace(
            __version__="11.0",
            Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: Plan()),
        )
        monkeypatch.setattr(tensorrt_backend, "cuda_devices", lambda: 1)
        monkeypatch.setattr(tensorrt_backend, "pycuda_lacks", lambda: "")
        monkeypatch.setattr(tensorrt_backend, "capability_of", lambda _: capability)
        monkeypatch.setattr(tensorrt_backend, "CudaDevice", lambda _: gpu)
        monkeypatch.setattr(tensorrt_backend, "import_flavour", lambda _: trt)
        logger = SimpleNamespace(messages=[])
        monkeypatch.setattr(tensorrt_backend, "shared_logger", lambda _: logger)
        return gpu

    return put


def test_what_a_plan_says_of_its_gpu(machine: Any) -> None:
    gpu = machine("NVIDIA L4", "sm89", 12080)
    assert gpu_of_machine() == {"name": "NVIDIA L4", "driver": "12.8", "capability": "sm89"}
    assert gpu.closed == 1


@pytest.mark.parametrize("why", ["pycuda is not installed", "pycuda fails (no libcuda)"])
def test_a_gpu_that_pycuda_does_not_show_is_no_error(
    machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    machine()
    monkeypatch.setattr(tensorrt_backend, "pycuda_lacks", lambda: why)
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert gpu_of_machine() == {}
    assert why in caplog.text
    assert not plan_runs_here(manifest_of())


def test_the_device_of_a_build_is_the_gpu_and_its_driver(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of another GPU, or of another driver, is no answer to a build here."""
    monkeypatch.setattr(probe, "_probe_gpu", lambda: (True, "1 CUDA devices"))
    found = []
    for name, version in (("NVIDIA L4", 13000), ("NVIDIA L40S", 13000), ("NVIDIA L4", 12080)):
        machine(name, version=version)
        found.append(probe.describe_device("tensorrt"))
    assert found[0] == "NVIDIA L4, sm89, driver of CUDA 13.0"
    assert len(set(found)) == 3


@pytest.mark.parametrize("fault", ["deserialize", "profiles"])
def test_a_plan_that_does_not_load_gives_the_device_back(
    machine: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    gpu = machine()

    def fail(*_: Any) -> Any:
        raise UserError("no")

    if fault == "deserialize":
        monkeypatch.setattr(tensorrt_backend, "load_plan", fail)
    else:
        monkeypatch.setattr(Plan, "get_tensor_profile_shape", fail)
    with pytest.raises(UserError, match="no"):
        TensorRtEngine(directory, manifest_of(), "auto")
    assert gpu.closed == 1


def test_a_hint_to_build_again_does_so(machine: Any) -> None:
    """Without --rebuild the build would say that the engine is up to date."""
    machine(capability="sm120")
    with pytest.raises(UserError) as caught:
        check_target(Path("engine"), manifest_of(), "auto")
    assert "-o engine --backend tensorrt --rebuild " in str(caught.value.hint)


@pytest.mark.parametrize(
    ("capability", "hardware", "runs"),
    [
        ("sm89", "none", True),
        ("sm120", "none", False),
        ("sm120", "same-cc", False),
        ("sm120", "ampere+", True),
        ("sm75", "ampere+", False),
    ],
)
def test_a_plan_runs_on_the_gpus_it_was_built_for(
    machine: Any, capability: str, hardware: str, runs: bool
) -> None:
    machine(capability=capability)
    manifest = manifest_of(hardware=hardware)
    assert plan_runs_here(manifest) == runs
    if runs:
        check_target(Path("engine"), manifest, "auto")
        return
    with pytest.raises(UserError, match="not built for this GPU") as caught:
        check_target(Path("engine"), manifest, "auto")
    assert (caught.value.seen, caught.value.expected) == (capability, "sm89")
    assert "unetrt build" in str(caught.value.hint)


def test_no_plan_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "cuda_devices", lambda: 0)
    assert not plan_runs_here(manifest_of())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "model.plan").write_bytes(b"plan")
    return tmp_path


def test_the_same_gpu_is_no_news(
    machine: Any, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine(version=13010)
    TensorRtEngine(directory, manifest_of(), "auto").close()
    assert not caplog.records


@pytest.mark.parametrize(("name", "version"), [("NVIDIA L40S", 13000), ("NVIDIA L4", 12090)])
def test_another_gpu_of_its_kind_is_a_warning(
    machine: Any, directory: Path, caplog: pytest.LogCaptureFixture, name: str, version: int
) -> None:
    built = ADA | {"driver": "12.9" if version == 13000 else "12.95"}
    machine(name, version=version)
    with caplog.at_level(logging.WARNING, "unetrt"):
        TensorRtEngine(directory, manifest_of(gpu=built), "auto").close()
    assert "was built on NVIDIA L4 under CUDA 12.9" in caplog.text
    assert f"here is {name}" in caplog.text


def test_a_driver_of_an_older_cuda_is_refused(machine: Any, directory: Path) -> None:
    gpu = machine(version=12080)
    with pytest.raises(UserError, match="newer driver") as caught:
        TensorRtEngine(directory, manifest_of(), "auto")
    assert "CUDA 12.8" in str(caught.value.seen)
    assert "CUDA 13.0" in str(caught.value.expected)
    assert gpu.closed == 1


def test_a_plan_that_does_not_know_its_gpu_opens(machine: Any, directory: Path) -> None:
    machine("any", "sm75", 12000)
    manifest = replace(manifest_of(), target={"compute_capabilities": []})
    assert plan_runs_here(manifest)
    TensorRtEngine(directory, manifest, "auto").close()


@pytest.mark.parametrize(
    ("input_size", "size", "taken"),
    [
        ((32, 32), (64, 64), True),
        ((48, 32), (64, 64), True),
        ((9, 9), (18, 18), True),
        ((32, 32), (64, 65), False),
        ((9, 9), (64, 64), False),
        ((65, 32), (64, 64), False),
    ],
)
def test_an_image_that_no_profile_holds_costs_itself_alone(
    machine: Any, directory: Path, input_size: tuple[int, int], size: tuple[int, int], taken: bool
) -> None:
    machine()
    with TensorRtEngine(directory, manifest_of(), "auto") as engine:
        refusal = engine.refusal(input_size, size)
    assert (refusal is None) == taken
    if refusal is not None:
        assert isinstance(refusal, ImageError)
        assert f"{size[0]}×{size[1]} pixels" in refusal.message
        assert str(refusal.seen).startswith(f"images (4, {input_size[0]}, {input_size[1]}, 1)")
        assert str(refusal.expected).count("size_like") == 2
        assert f"--size {size[0]}x{size[1]}" in str(refusal.hint)
