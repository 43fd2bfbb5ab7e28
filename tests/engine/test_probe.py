from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetrt.bench.peers import BENCHMARK_APP
from unetrt.contract import modules
from unetrt.contract.errors import UserError
from unetrt.contract.modules import import_module
from unetrt.engine import extras, probe
from unetrt.engine.probe import (
    choose_backend,
    default_precision,
    describe_device,
    describe_machine,
    package_version,
    probe_backends,
)
from unetrt.engine.tensorrt_backend import cuda_devices

PACKAGES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "torch": "torch",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
}


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    monkeypatch.setattr(
        probe, "is_installed", lambda name: name not in names and modules.is_installed(name)
    )


def break_package(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    name: str,
    code: str = "raise ImportError('libfoo.so: not found')",
) -> None:
    """Put a package in front that is there and cannot be imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"{code}\n")
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
    assert [text.split(":")[0] for text in passed_over] == ["tensorrt", "tensorrt-rtx", "torch"]


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


BROKEN = {
    "a library is missing": "raise OSError('libfoo.so: not found')",
    "built for another numpy": "raise ImportError('\\n\\nlibfoo.so: not found\\nsecond line')",
    "refuses to start": "raise RuntimeError('libfoo.so: not found')",
}


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "tensorrt"])
@pytest.mark.parametrize("how", BROKEN)
def test_whatever_a_package_raises_costs_its_backend_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, how: str
) -> None:
    before = {s.name: s for s in probe_backends()}
    package = PACKAGES[name]
    break_package(monkeypatch, tmp_path, package, BROKEN[how])
    after = {s.name: s for s in probe_backends()}
    status = after.pop(name)
    assert (status.builds, status.runs) == (False, False)
    assert "libfoo.so: not found" in status.detail
    assert "\n" not in status.detail
    assert "second line" not in status.detail
    assert status.install == modules.INSTALL[package]
    assert after == {other: s for other, s in before.items() if other != name}
    assert choose_backend()[0] != name


def test_what_pip_leaves_of_a_package_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two onnxruntimes in one environment one is removed, and takes the other's files along."""
    break_package(monkeypatch, tmp_path, "onnxruntime", "")
    status = {s.name: s for s in probe_backends()}["onnxruntime"]
    assert (status.builds, status.runs) == (False, False)
    assert status.install == modules.INSTALL["onnxruntime"]


def test_a_broken_pycuda_costs_running_and_not_building(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "cuda_devices", lambda: 1)
    break_package(monkeypatch, tmp_path, "pycuda")
    status = {s.name: s for s in probe_backends()}["tensorrt-rtx"]
    assert status.builds == modules.is_installed("tensorrt_rtx")
    assert not status.runs


@pytest.mark.parametrize("package", ["torch", "pycuda"])
def test_the_next_is_asked_for_the_gpus_names_where_one_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    ways = {"torch": extras._names_by_torch, "pycuda": extras._names_by_pycuda}
    break_package(monkeypatch, tmp_path, package)
    break_package(monkeypatch, tmp_path, "pynvml")
    monkeypatch.setattr(extras, "cuda_devices", lambda: 1)
    monkeypatch.setattr(extras, "GPU_NAMES", (ways[package], lambda: ["NVIDIA X"]))
    assert extras.describe_gpus()["gpu"] == "NVIDIA X"


def the_extra(name: str) -> extras.Extra:
    return next(extra for extra in extras.probe_extras() if extra.name == name)


@pytest.mark.parametrize(
    ("name", "package", "needed"),
    [
        ("triton", "tritonclient", "grpc"),
        ("ray", "ray", "pyarrow"),
        ("ray", "ray", "pandas"),
        ("bands", "tifffile", "imagecodecs"),
    ],
)
def test_an_extra_that_lacks_a_part_is_not_found(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, needed: str
) -> None:
    if not (version := package_version(package)):
        pytest.skip(f"{package} is not installed here")
    monkeypatch.setattr(
        extras, "is_installed", lambda module: module != needed and modules.is_installed(module)
    )
    extra = the_extra(name)
    assert not extra.works
    assert extra.found == f"{version}, lacks {needed}"
    assert extra.install == modules.pip_install(f"'unetrt[{name}]'")


@pytest.mark.parametrize("package", ["grpc", "imagecodecs", "s3fs"])
def test_an_extra_that_cannot_be_imported_is_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    break_package(monkeypatch, tmp_path, package, "raise RuntimeError('libfoo.so: not found')")
    extra = the_extra({"grpc": "triton", "imagecodecs": "bands"}.get(package, package))
    assert not extra.works
    assert extra.found.endswith("cannot be imported: RuntimeError: libfoo.so: not found")
    assert extra.install == modules.INSTALL[package]


SESSION = """
import json, os
from onnx import TensorProto, helper
from unetrt.contract.modules import import_module

floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", floats[:1], floats[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
runtime = import_module("onnxruntime")
runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(json.dumps(os.environ["ORT_DISABLE_TELEMETRY"]))
"""


def run_at_home(script: str, home: Path) -> str:
    """What a process prints whose user has set nothing and has that home."""
    unset = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_onnxruntime_does_not_report_to_its_makers(tmp_path: Path) -> None:
    """Left to it, onnxruntime 1.31 writes a device id there, and sends it."""
    assert json.loads(run_at_home(SESSION, tmp_path)) == "1"
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_openvino_does_not_report_to_its_makers(tmp_path: Path) -> None:
    """Left to it, openvino 2026.4 writes a client id there, and sends that it was imported."""
    script = """
import sys
from unetrt.contract.modules import import_module

import_module("openvino").Core()
print("openvino_telemetry" in sys.modules)
"""
    assert run_at_home(script, tmp_path) == "False\n"
    assert not list(tmp_path.iterdir())


def test_benchmark_app_does_not_report_to_its_makers(tmp_path: Path) -> None:
    script = f"import sys; sys.argv.append('--help'); {BENCHMARK_APP}"
    assert "benchmark" in run_at_home(script, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_probe_of_peaks_does_not_report_to_their_makers(tmp_path: Path) -> None:
    """It is a process of its own, which opens no engine before."""
    script = """
import sys
from unetrt.bench.peak import measure_peaks

found = measure_peaks("cpu", sides=(64,), seconds=0.001)
print("OpenVINO" in str(found))
print("openvino_telemetry" in sys.modules)
"""
    assert run_at_home(script, tmp_path) == "True\nFalse\n"
    assert not list(tmp_path.rglob("intel"))


def test_who_wants_it_to_report_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_module("onnxruntime")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="of Linux alone")
@pytest.mark.parametrize(("usable", "told"), [({0, 5}, "2 of 16 cores"), (range(16), "16 cores")])
def test_cores_are_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, usable: object, told: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert describe_machine()["processor"].endswith(f", {told}")


@pytest.mark.parametrize("gpus", [0, 1])
def test_torch_runs_checkpoints_and_builds_engines_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    torch = modules.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA X")
    status = {s.name: s for s in probe_backends()}["torch"]
    assert status.runs
    assert status.builds == bool(gpus)
    assert "runs checkpoints" in status.detail
    assert ("builds fp16 engines" in status.detail) == bool(gpus)
    expected = "NVIDIA X" if gpus else describe_device("openvino")
    assert describe_device("torch").startswith(expected)


def test_a_gpu_without_tensorrt_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines of the CPU come after it."""
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(modules.import_module("torch").cuda, "is_available", lambda: True)
    name, reason = choose_backend()
    assert (name, default_precision(name)) == ("torch", "fp16")
    assert "not tensorrt: not installed" in reason


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
