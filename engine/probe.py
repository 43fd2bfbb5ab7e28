"""What this machine can run: asked by `doctor` and by every `--backend auto`."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..contract.cores import usable_cores
from ..contract.errors import UserError, first_line
from ..contract.memory import memory_bytes
from ..contract.modules import INSTALL, import_module, is_installed
from .cuda_device import capability_of, pycuda_lacks
from .tensorrt_backend import cuda_devices, gpu_of_machine
from .tensorrt_flavour import RTX_TARGETS, import_flavour


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can build and run here, what was found, and the line that brings it."""

    name: str
    builds: bool
    runs: bool
    detail: str
    install: str = ""


def probe_backends() -> list[BackendStatus]:
    """Fastest first: the order in which `auto` chooses."""
    return [_status_of(name, probe) for name, probe in PROBES.items()]


def _status_of(name: str, probe: Callable[[], BackendStatus]) -> BackendStatus:
    """A package that is there and does not work costs that backend alone, whatever it raises."""
    try:
        return probe()
    except UserError as error:
        detail = error.message
        if error.seen is not None:
            detail += f" ({first_line(error.seen)})"
    except Exception as error:  # noqa: BLE001  shown as found; a broken package may raise anything
        detail = f"{type(error).__name__}: {first_line(error)}"
    return BackendStatus(name, False, False, detail, INSTALL.get(name.replace("-", "_"), ""))


def choose_backend(
    statuses: Sequence[BackendStatus] | None = None,
    lacks: Callable[[str], str] = lambda name: "",
) -> tuple[str, str]:
    """(backend, reason) for `--backend auto`: the first that builds and runs here.

    lacks: why a backend will not do, or ''.
    """
    passed_over: list[str] = []
    for status in probe_backends() if statuses is None else statuses:
        lack = lacks(status.name)
        if status.builds and status.runs and not lack:
            reason = f"{status.name}: {status.detail}"
            return status.name, "; ".join([reason, *passed_over])
        passed_over.append(f"not {status.name}: {lack or status.detail}")
    raise UserError("no backend runs here", seen="; ".join(passed_over), hint=INSTALL["openvino"])


PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("bf16", "fp32", "int8"),
    "torch": ("fp16",),
    "tensorrt": ("fp16", "bf16", "fp32", "int8"),
    "tensorrt-rtx": ("fp16", "bf16", "fp32", "int8"),
}
"""What each backend is built in. TensorRT is strongly typed: its precision is the graph's."""


def precision_flags(precision: str, backend: str) -> str:
    """Flags of `build` for a precision, of another backend where this one is not built in it.

    '' where none is.
    """
    if precision in PRECISIONS.get(backend, ()):
        return f"--precision {precision}"
    other = next((name for name, known in PRECISIONS.items() if precision in known), "")
    return other and f"--backend {other} --precision {precision}"


def default_precision(backend: str) -> str:
    """The fastest precision that keeps the masks: fp16 on a GPU, bf16 where the CPU has it."""
    if backend.startswith("tensorrt") or backend == "torch":
        return "fp16"
    if backend == "openvino":
        from .openvino_backend import supports_bf16

        return "bf16" if supports_bf16() else "fp32"
    return "fp32"


def describe_machine() -> dict[str, str]:
    """Versions and hardware, as a bug report or a bench should state them."""
    return {
        "unetrt": package_version("unetrt"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {_cores()}",
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "gpu": f"{cuda_devices()} CUDA devices",
    }


def describe_device(backend: str) -> str:
    """What an engine of `backend` is built and judged on: the processor, or GPU and driver."""
    if backend == "torch":
        return _torch_device()
    if not backend.startswith("tensorrt"):
        return _processor()
    if not _probe_gpu()[0]:
        return "no CUDA device"
    gpu = gpu_of_machine()
    return f"{gpu['name']}, {gpu['capability']}, driver of CUDA {gpu['driver']}"


def _torch_device() -> str:
    torch = import_module("torch")
    if not torch.cuda.is_available():
        return _processor()
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def memory_of(threads: int | None) -> int:
    """Bytes for a process that computes with so many threads: as large a part as of the cores."""
    cores = usable_cores()
    return memory_bytes() * min(threads or cores, cores) // cores


def _cores() -> str:
    """Those that may be used first: a scheduler often leaves a process some of them only."""
    usable, count = usable_cores(), os.cpu_count()
    return f"{count} cores" if usable == count else f"{usable} of {count} cores"


def cpu_flags() -> set[str]:
    """The instruction sets that Linux names for an x86 processor; none where it tells nothing."""
    found = re.search(r"^flags\s*: (.*)$", cpuinfo(), re.MULTILINE)
    return set(found[1].split()) if found else set()


def cpuinfo() -> str:
    """Linux's own description of the processors, or ''."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _processor() -> str:
    """The name that Linux gives it; elsewhere the platform's."""
    found = re.search(r"^model name\s*: (.*)$", cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def package_version(*names: str) -> str:
    """The version of the first of `names` that is installed, or ''."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _missing(name: str, module: str) -> BackendStatus:
    return BackendStatus(name, False, False, "not installed", INSTALL[module])


def _probe_tensorrt() -> BackendStatus:
    if not is_installed("tensorrt"):
        return _missing("tensorrt", "tensorrt")
    import_flavour("tensorrt")
    runs, gpu = _probe_gpu()
    detail = f"{package_version('tensorrt')}, {gpu}"
    return BackendStatus("tensorrt", cuda_devices() > 0, runs, detail)


def _probe_rtx() -> BackendStatus:
    if not is_installed("tensorrt_rtx"):
        return _missing("tensorrt-rtx", "tensorrt_rtx")
    import_flavour("tensorrt-rtx")
    found = package_version("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx")
    runs, gpu = _probe_gpu()
    capability = capability_of(0) if runs else ""
    if runs and capability not in RTX_TARGETS:
        runs, gpu = False, f"{gpu} of {capability}, which TensorRT-RTX does not run on"
    return BackendStatus("tensorrt-rtx", True, runs, f"{found}, {gpu}; builds plans without one")


def _probe_gpu() -> tuple[bool, str]:
    """Whether plans can run: a CUDA device and pycuda; and what was found."""
    found = cuda_devices()
    if found and (why := pycuda_lacks()):  # plans for RTX are built all the same
        return False, f"{found} CUDA devices, but {why}"
    return found > 0, f"{found} CUDA devices"


def _probe_openvino() -> BackendStatus:
    if not is_installed("openvino"):
        return _missing("openvino", "openvino")
    from .openvino_backend import supports_bf16

    bf16 = "bf16" if supports_bf16() else "no bf16"
    return BackendStatus("openvino", True, True, f"{package_version('openvino')}, CPU with {bf16}")


def _probe_onnxruntime() -> BackendStatus:
    if not is_installed("onnxruntime"):
        return _missing("onnxruntime", "onnxruntime")
    # Asked of the module itself: what pip leaves of a removed package is a folder without content.
    runs = "CPUExecutionProvider" in import_module("onnxruntime").get_available_providers()
    found = package_version("onnxruntime-gpu", "onnxruntime")
    detail = f"{found}, {'' if runs else 'no '}CPU provider"
    return BackendStatus("onnxruntime", runs, runs, detail)


def _probe_torch() -> BackendStatus:
    if not is_installed("torch"):
        return _missing("torch", "torch")
    torch = import_module("torch")
    on_gpu = torch.cuda.is_available()
    detail = f"{torch.__version__}, {'CUDA' if on_gpu else 'CPU'}; runs checkpoints"
    return BackendStatus("torch", on_gpu, True, detail + (", builds fp16 engines" * on_gpu))


PROBES: dict[str, Callable[[], BackendStatus]] = {
    "tensorrt": _probe_tensorrt,
    "tensorrt-rtx": _probe_rtx,
    "torch": _probe_torch,
    "openvino": _probe_openvino,
    "onnxruntime": _probe_onnxruntime,
}

USES = {
    "tensorrt": "engines, NVIDIA GPUs",
    "tensorrt-rtx": "engines, RTX GPUs",
    "torch": "training, checkpoints, engines on GPUs",
    "openvino": "engines, CPUs",
    "onnxruntime": "engines, CPUs and CUDA",
}
"""What each is for, in `doctor`'s table."""
