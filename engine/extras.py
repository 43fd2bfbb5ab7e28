"""The GPUs of this machine by name, and packages that only parts of unetrt need."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError, first_line
from ..contract.modules import INSTALL, import_module, is_installed
from .probe import package_version
from .tensorrt_backend import cuda_devices


@dataclass(frozen=True)
class Extra:
    """Something that one part of unetrt needs: whether it works, what was found, what it enables.

    found: its version and what it lacks, "no" where it is not there. install: the command that
    brings what is missing, '' where nothing is or it would be of no use on this machine.
    """

    name: str
    works: bool
    found: str
    enables: str
    install: str = ""


@dataclass(frozen=True)
class Part:
    """An extra and its modules: the first is what it is, the others it cannot do without.

    imported: whether doctor imports them, which alone tells a broken package. Ray, pandas and
    wandb take seconds: of those it is asked only that they are installed.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    enables: str
    imported: bool = True


EXTRAS = (
    Part(
        "ray",
        "ray",
        ("ray", "pyarrow", "pandas"),
        "predict --ray: jobs on a cluster",
        imported=False,
    ),
    Part(
        "triton",
        "tritonclient",
        ("tritonclient.grpc.model_config_pb2", "grpc"),
        "unetrt triton, and the client of a server",
    ),
    Part("wandb", "wandb", ("wandb",), "train --wandb: curves on a server", imported=False),
    Part(
        "bands",
        "tifffile",
        ("tifffile", "imagecodecs"),
        "TIFF images of other than 1 or 3 channels",
    ),
    Part("s3fs", "s3fs", ("s3fs",), "images and masks at s3://…"),
    Part("gcsfs", "gcsfs", ("gcsfs",), "images and masks at gs://…"),
    Part("adlfs", "adlfs", ("adlfs",), "images and masks at az://…"),
)
GPU_EXTRAS = (
    Part("NVML", "nvidia-ml-py", ("pynvml",), "power, clocks and driver in bench"),
    Part(
        "pycuda",
        "pycuda",
        ("pycuda.driver",),
        "running TensorRT plans; copies beside the network",
    ),
)
"""The same of a machine with an NVIDIA GPU: elsewhere they are neither offered nor imported."""
COMPILERS = ("g++", "clang++")


def probe_extras() -> list[Extra]:
    """What the backends do not need, each with what it enables."""
    gpu = cuda_devices() > 0
    found = [_extra(part, offered=True) for part in EXTRAS]
    found += [_extra(part, offered=gpu) for part in GPU_EXTRAS]
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), *COMPILERS])), "")
    what = "torch.compile in bench" + (", pycuda's installation" if gpu else "")
    install = "" if compiler else "apt-get install g++"
    return [*found, Extra("C++ compiler", bool(compiler), compiler or "no", what, install)]


def _extra(part: Part, offered: bool) -> Extra:
    install = INSTALL[part.modules[0]] if offered else ""
    tops = [module.partition(".")[0] for module in part.modules]
    lacks = [top for top in tops if not is_installed(top)]
    if tops[0] in lacks:
        return Extra(part.name, False, "no", part.enables, install)
    found = package_version(part.package) or "installed"
    trouble = f"lacks {', '.join(lacks)}" if lacks else ""
    if part.imported and offered and not lacks:
        trouble = _import_trouble(part.modules)
    if trouble:
        return Extra(part.name, False, f"{found}, {trouble}", part.enables, install)
    return Extra(part.name, True, found, part.enables)


def _import_trouble(modules: tuple[str, ...]) -> str:
    for module in modules:
        try:
            import_module(module)
        except UserError as error:
            return f"cannot be imported: {first_line(error.seen)}"
    return ""


def describe_gpus() -> dict[str, str]:
    """`gpu` and `driver` of this machine; {} without a GPU. Asks PyTorch, pycuda, then NVML."""
    if not cuda_devices():
        return {}
    names = next(filter(None, map(_answer, GPU_NAMES)), [])
    kinds = {name: names.count(name) for name in names}
    text = ", ".join(name if n == 1 else f"{n} × {name}" for name, n in kinds.items())
    found = {"gpu": text or f"{cuda_devices()} CUDA devices", "driver": _driver()}
    return {key: value for key, value in found.items() if value}


def _answer(ask: Callable[[], list[str]]) -> list[str]:
    """[] of a package that cannot be imported, or that CUDA refuses: the next may know."""
    try:
        return ask()
    except (UserError, RuntimeError):
        return []


def _names_by_nvml() -> list[str]:
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    except nvml.NVMLError:
        return []


def _names_by_torch() -> list[str]:
    """Of the devices that CUDA_VISIBLE_DEVICES leaves: those that are used."""
    if not is_installed("torch"):
        return []
    torch = import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(index) for index in range(count)]


def _names_by_pycuda() -> list[str]:
    if not is_installed("pycuda"):
        return []
    driver = import_module("pycuda.driver")
    try:
        driver.init()
        return [driver.Device(index).name() for index in range(driver.Device.count())]
    except driver.Error:
        return []


def _driver() -> str:
    """NVIDIA's driver, as NVML or the kernel's module tells it; '' where neither does."""
    nvml = _nvml()
    if nvml is not None:
        try:
            return _text(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError:
            pass  # the kernel's module may know
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Kernel Module\D*(\d+(?:\.\d+)+)", text)
    return found.group(1) if found else ""


def _nvml() -> Any:
    """NVML's bindings, started; None without them, without its library, or where they fail."""
    if not is_installed("pynvml"):
        return None
    try:
        nvml = import_module("pynvml")
    except UserError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _text(value: str | bytes) -> str:
    """Older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value


GPU_NAMES: tuple[Callable[[], list[str]], ...] = (_names_by_torch, _names_by_pycuda, _names_by_nvml)
