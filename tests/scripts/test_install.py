"""The scripts that install for the tests, and `make gpu`, with stand-ins for what they call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SMI = """
case "$*" in
    *=name*) echo "${SMI_NAME-NVIDIA H100 80GB HBM3}" ;;
    *=driver_version*) echo 535.54.03 ;;
    *) echo "what nvidia-smi says of itself" ;;
esac
exit ${SMI:-0}
"""
PYTHON = """
echo "python $*" >> "$CALLS"
case "$*" in
    *"torch.version.cuda"*) echo "torch 2.13.0 for CUDA 13.0"; exit ${TORCH:-0} ;;
    "-m pytest"*) echo "the tests"; exit ${PYTEST:-0} ;;
    "-m pip"*) echo "pip: no such wheel" >&2; exit ${PIP:-0} ;;
    *find_spec*) exit 1 ;;
    *sys.version_info*) echo "${VERSION:-3.12}" ;;
    *"import tensorrt_rtx"* | *"import onnx_ir"*) exit ${ABSENT:-0} ;;
esac
"""


class Machine:
    """A folder with the scripts, and programs that answer as the environment tells them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.programs = folder / "bin"
        self.programs.mkdir()
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        shutil.copy(ROOT / "constraints.txt", folder)
        for name, text in (("nvidia-smi", SMI), ("python", PYTHON), ("g++", "")):
            self.program(self.programs / name, text)

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **told: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.folder / "scripts" / script, *arguments],
            env={"PATH": path, "CALLS": str(self.calls), "HOME": str(self.folder), **told},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def called(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if sys.platform == "win32" or shutil.which("timeout") is None:
        pytest.skip("the scripts are for Linux: bash, and timeout of coreutils")
    return Machine(tmp_path)


def gpu(machine: Machine, stage: str, **told: str) -> subprocess.CompletedProcess[str]:
    python = str(machine.programs / "python")
    return machine.run("gpu.sh", stage, **{"PYTHON": python, **told})


def test_nvidia_smi_that_fails_names_no_gpu(machine: Machine) -> None:
    """It writes its failure where the name would stand."""
    done = gpu(machine, "tests", SMI="9", SMI_NAME="NVIDIA-SMI has failed")
    assert done.returncode == 1
    assert "nothing was run" in done.stderr
    assert "what nvidia-smi says of itself" in done.stderr
    assert not (machine.folder / "bench").exists()
    assert machine.called() == ""


@pytest.mark.parametrize("stage", ["install", "tests", "train", "bench", "all"])
def test_a_gpu_that_torch_cannot_see_is_an_error(stage: str, machine: Machine) -> None:
    done = gpu(machine, stage, TORCH="3")
    assert done.returncode == 1
    for part in ("NVIDIA H100 80GB HBM3", "driver 535.54.03", "torch 2.13.0 for CUDA 13.0"):
        assert part in done.stderr
    assert machine.called().count("python ") == 1, "nothing but the question"


def test_no_torch_is_an_error(machine: Machine) -> None:
    done = gpu(machine, "tests", TORCH="1")
    assert done.returncode == 1
    assert "has no torch" in done.stderr
    assert "make dev" in done.stderr


def test_the_status_tells_whether_a_step_failed(machine: Machine) -> None:
    assert gpu(machine, "tests").returncode == 0
    failed = gpu(machine, "tests", PYTEST="1")
    assert failed.returncode == 1
    (kept,) = (machine.folder / "bench" / "results").glob("*/tests.txt")
    assert kept.read_text() == "the tests\nstatus 1\n"


def test_a_stage_without_time_left_runs_nothing(machine: Machine) -> None:
    """45 of its seconds are for a step that is cut to end in."""
    done = gpu(machine, "tests", STAGE_SECONDS="50")
    assert done.returncode == 1
    assert "no time left" in done.stdout
    assert "-m pytest" not in machine.called()


def test_the_environment_of_the_clone_is_taken_where_there_is_one(machine: Machine) -> None:
    machine.program(machine.folder / ".venv" / "bin" / "python", "exit 3")
    assert ".venv/bin" not in gpu(machine, "tests").stderr
    done = gpu(machine, "tests", PYTHON="")
    assert done.returncode == 1, "that one sees no GPU"


def test_what_is_missing_is_installed_as_it_was_tested(machine: Machine) -> None:
    done = gpu(machine, "install", ABSENT="1", PIP="1")
    installs = [line for line in machine.called().splitlines() if "pip install" in line]
    assert any(line.endswith(" --no-deps onnx-ir") for line in installs)
    assert any("tensorrt-rtx-cu13" in line for line in installs)
    assert all("-c constraints.txt" in line for line in installs)
    assert "install: no tensorrt_rtx" in done.stdout


def test_tensorrt_is_installed_from_a_folder_of_wheels(machine: Machine) -> None:
    wheels = machine.folder / "wheels"
    wheels.mkdir()
    for name in ("tensorrt_rtx_cu13", "tensorrt_rtx_cu13_libs", "tensorrt_cu13", "onnx_ir"):
        (wheels / f"{name}-1.0-py3-none-any.whl").touch()
    gpu(machine, "install", ABSENT="1", WHEELS=str(wheels))
    installs = [line for line in machine.called().splitlines() if "pip install" in line]
    assert installs[-1].endswith(" --no-deps tensorrt_rtx_cu13 tensorrt_rtx_cu13_libs")
    assert all(f"--no-index --find-links {wheels}" in line for line in installs)


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["--required"], 1)])
def test_pycuda_that_cannot_be_had_fails_only_who_needs_it(
    flags: list[str], status: int, machine: Machine
) -> None:
    machine.program(machine.folder / "cuda" / "bin" / "nvcc", "")
    toolkit = {"CUDA_ROOT": str(machine.folder / "cuda")}
    done = machine.run("install_pycuda.sh", *flags, "python", PIP="1", **toolkit)
    assert done.returncode == status
    assert "its sources are not to be had" in done.stderr
    assert "pip: no such wheel" in done.stdout
    none = machine.run("install_pycuda.sh", *flags, "python", CUDA_ROOT="/nowhere")
    assert none.returncode == status
    assert "no CUDA toolkit in /nowhere" in none.stderr


def folder_of_pycuda(machine: Machine) -> dict[str, str]:
    """Its sdist, and a CUDA toolkit; what the script is told of them."""
    machine.program(machine.folder / "cuda" / "bin" / "nvcc", "")
    (machine.folder / "pycuda-2026.1").mkdir()
    pack = ["tar", "czf", "pycuda-2026.1.tar.gz", "pycuda-2026.1"]
    subprocess.run(pack, cwd=machine.folder, check=True)
    return {"CUDA_ROOT": str(machine.folder / "cuda"), "PYCUDA_FROM": str(machine.folder)}


def test_pycuda_that_does_not_compile_says_why(machine: Machine) -> None:
    machine.program(machine.programs / "gcc", "echo no such header >&2; exit 1")
    done = machine.run("install_pycuda.sh", "python", **folder_of_pycuda(machine))
    assert done.returncode == 0
    assert "it does not compile" in done.stderr
    assert "no such header" in done.stdout


# Pybind11 is there after pip has been asked for it, unless PIP11 says that it is not to be had.
BUILDS = """
echo "python $*" >> "$CALLS"
case "$*" in
    *find_spec*) exit 1 ;;
    *"import pybind11"*) [ -e "$HOME/pybind11" ] || { echo no pybind11 >&2; exit 1; } ;;
    *"pip install"*" pybind11") [ -z "$PIP11" ] && touch "$HOME/pybind11" ;;
    *"pip install"*" .") cp siteconf.py "$HOME"; echo "$LDFLAGS" > "$HOME/ldflags" ;;
esac
"""


@pytest.fixture
def settings(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """Build pycuda, and run its siteconf.py as its setup.py does, beside a pybind11 that tells."""
    machine.program(machine.programs / "python", BUILDS)
    machine.program(machine.programs / "gcc", "cat > /dev/null")
    told = folder_of_pycuda(machine)

    class ParallelCompile:
        def __init__(self, default: int) -> None:
            self.default = default

        def install(self) -> None:
            cores.append(self.default)

    cores: list[int] = []
    helpers = types.ModuleType("pybind11.setup_helpers")
    vars(helpers)["ParallelCompile"] = ParallelCompile
    package = types.ModuleType("pybind11")
    vars(package)["setup_helpers"] = helpers
    monkeypatch.setitem(sys.modules, "pybind11", package)
    monkeypatch.setitem(sys.modules, "pybind11.setup_helpers", helpers)

    def build(**more: str) -> dict[str, object]:
        done = machine.run("install_pycuda.sh", "--required", "python", **told, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, object] = {}
        exec((machine.folder / "siteconf.py").read_text(), found)
        del found["__builtins__"]
        return {"names": set(found), "cores": cores, "said": done.stdout}

    return build


NAMES = {"CUDA_ROOT", "CUDA_ENABLE_CURAND", "CUDADRV_LIB_DIR", "CUDADRV_LIBNAME"}
"""Of pycuda's settings: it refuses any other."""


def test_pycuda_is_compiled_on_all_cores(
    settings: Callable[..., dict[str, object]], machine: Machine
) -> None:
    """With a pybind11 that does not stay in the environment."""
    found = settings(LDFLAGS="-Lmine")
    assert found["names"] == NAMES
    assert found["cores"] == [len(os.sched_getaffinity(0))]
    assert (machine.folder / "ldflags").read_text() == "-Lmine -Wl,--no-as-needed\n"
    (asked,) = (line for line in machine.called().splitlines() if line.endswith(" pybind11"))
    for part in ("constraints.txt --target /", f"--no-index --find-links {machine.folder}"):
        assert part in asked


def test_pycuda_is_compiled_with_a_pybind11_that_is_there(
    settings: Callable[..., dict[str, object]], machine: Machine
) -> None:
    (machine.folder / "pybind11").touch()
    assert settings()["cores"] == [len(os.sched_getaffinity(0))]
    assert not any(line.endswith(" pybind11") for line in machine.called().splitlines())


def test_pycuda_is_compiled_without_pybind11(settings: Callable[..., dict[str, object]]) -> None:
    found = settings(PIP11="none")
    assert (found["names"], found["cores"]) == (NAMES, [])
    assert "no pybind11: compiled on one core" in str(found["said"])


def test_triton_is_not_fetched_for_a_python_that_it_is_not_for(machine: Machine) -> None:
    done = machine.run("install_tritonserver.sh", "python", VERSION="3.14")
    assert done.returncode == 0
    assert "this is 3.14" in done.stdout
    assert "pip" not in machine.called()


def test_triton_that_cannot_be_fetched_says_why(machine: Machine) -> None:
    done = machine.run("install_tritonserver.sh", "python", PIP="1")
    assert done.returncode == 0
    assert "pip: no such wheel" in done.stdout
    assert all("--only-binary=:all:" in c for c in machine.called().splitlines() if "pip" in c)
