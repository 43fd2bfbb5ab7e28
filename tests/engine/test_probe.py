from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from unetrt.contract import modules
from unetrt.contract.errors import UserError
from unetrt.engine import probe
from unetrt.engine.probe import (
    choose_backend,
    default_precision,
    describe_machine,
    package_version,
    probe_backends,
)
from unetrt.engine.tensorrt_backend import cuda_devices

PACKAGES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
}


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    monkeypatch.setattr(
        probe, "is_installed", lambda name: name not in names and modules.is_installed(name)
    )


def break_package(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Put a package in front that is there and cannot be imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise ImportError('libfoo.so: not found')\n")
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(folder))


def test_every_backend_has_a_status() -> None:
    found = {status.name: status for status in probe_backends()}
    assert list(found) == list(PACKAGES)
    for name, package in PACKAGES.items():
        there = importlib.util.find_spec(package) is not None
        assert (found[name].detail != "not installed") == there
        assert bool(found[name].install) != there


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a CUDA device")
def test_without_a_gpu_openvino_is_chosen_and_says_why() -> None:
    name, reason = choose_backend()
    assert name == "openvino"
    first, *passed_over = reason.split("; not ")
    assert first.startswith(f"openvino: {package_version('openvino')}")
    assert [text.split(":")[0] for text in passed_over] == ["tensorrt", "tensorrt-rtx"]


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx", "openvino"])
def test_a_package_that_is_missing_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    hide(monkeypatch, package)
    name = next(n for n, p in PACKAGES.items() if p == package)
    status = {s.name: s for s in probe_backends()}[name]
    assert not status.builds
    assert not status.runs
    assert status.install == modules.INSTALL[package]
    chosen, reason = choose_backend()
    assert chosen != name
    assert f"not {name}: not installed" in reason


def test_onnxruntime_follows_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openvino")
    assert choose_backend()[0] == "onnxruntime"


def test_no_backend_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *PACKAGES.values())
    with pytest.raises(UserError, match="no backend runs here") as caught:
        choose_backend()
    assert all(f"not {name}" in str(caught.value.seen) for name in PACKAGES)
    assert "pip install" in str(caught.value.hint)


def test_a_package_that_does_not_import_costs_its_backend_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_package(monkeypatch, tmp_path, "openvino")
    status = {s.name: s for s in probe_backends()}["openvino"]
    assert not status.builds
    assert "libfoo.so" in status.detail
    name, reason = choose_backend()
    assert name == "onnxruntime"
    assert "not openvino: the package openvino is needed here" in reason


def test_torch_runs_checkpoints_and_builds_nothing() -> None:
    status = {s.name: s for s in probe_backends()}["torch"]
    assert status.runs
    assert not status.builds


def test_default_precisions() -> None:
    assert default_precision("tensorrt") == default_precision("tensorrt-rtx") == "fp16"
    assert default_precision("onnxruntime") == "fp32"
    assert default_precision("openvino") in ("bf16", "fp32")


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert set(machine) == {"unetrt", "python", "processor", "memory", "gpu"}
    assert all(isinstance(text, str) and text for text in machine.values())
    assert float(machine["memory"].split()[0]) > 0.1
    assert machine["gpu"] == f"{cuda_devices()} CUDA devices"


def test_versions_of_packages() -> None:
    assert package_version("no-such-package-here", "numpy")
    assert package_version("no-such-package-here") == ""
