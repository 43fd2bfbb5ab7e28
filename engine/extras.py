"""The GPUs of this machine by name, and packages that only parts of unetrt need."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.modules import import_module, is_installed
from .probe import package_version
from .tensorrt_backend import cuda_devices


@dataclass(frozen=True)
class Extra:
    """Something that one part of unetrt needs: what was found ('' is nothing), what it enables.

    install: the command that brings it, '' where it would be of no use on this machine.
    """

    name: str
    found: str
    enables: str
    install: str = ""


EXTRAS = (
    ("ray", "ray", ("ray",), "predict --ray: jobs on a cluster", "pip install 'unetrt[ray]'"),
    (
        "triton",
        "tritonclient",
        ("tritonclient",),
        "unetrt triton, and the client of a server",
        "pip install 'unetrt[triton]'",
    ),
    (
        "wandb",
        "wandb",
        ("wandb",),
        "train --wandb: curves on a server",
        "pip install 'unetrt[wandb]'",
    ),
    (
        "bands",
        "tifffile",
        ("tifffile",),
        "TIFF images of other than 1 or 3 channels",
        "pip install 'unetrt[bands]'",
    ),
)
"""(name, module, packages, what it enables, how to get it)."""
GPU_EXTRAS = (
    (
        "NVML",
        "pynvml",
        ("nvidia-ml-py",),
        "power, clocks and driver in bench",
        "pip install nvidia-ml-py",
    ),
    (
        "pycuda",
        "pycuda",
        ("pycuda",),
        "running TensorRT plans; copies beside the network",
        "pip install 'unetrt[trt]'",
    ),
)
"""The same of a machine with an NVIDIA GPU: elsewhere they are not offered."""
COMPILERS = ("g++", "clang++")


def probe_extras() -> list[Extra]:
    """What the backends do not need, each with what it enables."""
    gpu = cuda_devices() > 0
    found = [_extra(*entry, offered=True) for entry in EXTRAS]
    found += [_extra(*entry, offered=gpu) for entry in GPU_EXTRAS]
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), *COMPILERS])), "")
    what = "torch.compile in bench" + (", pycuda's installation" if gpu else "")
    return [
        *found,
        Extra("C++ compiler", compiler, what, "" if compiler else "apt-get install g++"),
    ]


def _extra(
    name: str, module: str, packages: tuple[str, ...], enables: str, install: str, offered: bool
) -> Extra:
    if is_installed(module):
        return Extra(name, package_version(*packages) or "installed", enables)
    return Extra(name, "", enables, install if offered else "")


def describe_gpus() -> dict[str, str]:
    """`gpu` and `driver` of this machine; {} without a GPU. Asks PyTorch, pycuda, then NVML."""
    if not cuda_devices():
        return {}
    names = next((names for names in (ask() for ask in GPU_NAMES) if names), [])
    kinds = {name: names.count(name) for name in names}
    text = ", ".join(name if n == 1 else f"{n} × {name}" for name, n in kinds.items())
    found = {"gpu": text or f"{cuda_devices()} CUDA devices", "driver": _driver()}
    return {key: value for key, value in found.items() if value}


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
    import torch

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
    """NVML's bindings, started; None without them or without its library."""
    if not is_installed("pynvml"):
        return None
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _text(value: str | bytes) -> str:
    """Older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value


GPU_NAMES: tuple[Callable[[], list[str]], ...] = (_names_by_torch, _names_by_pycuda, _names_by_nvml)
