"""What the GPU drew, at which clocks, and what held it back, while a row ran: NVML, sampled."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..contract.errors import UserError
from ..contract.modules import import_module
from .machine import cuda_device

SECONDS = 0.1
"""Between samples: NVML's own power reading is no finer."""

REASONS = {
    0x2: "clocks set by an application",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Bits of nvmlClocksEventReasons but 0x1, idle: nvml.h."""


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """watts: mean and most. sm_mhz: least and most. memory: bytes taken at most, by whomever.

    throttled: reasons seen, each with the share of the samples that had it.
    """

    samples: int
    watts: tuple[float, float] | None
    sm_mhz: tuple[int, int] | None
    memory: int
    throttled: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reading; None where this GPU does not tell."""

    watts: float | None
    sm_mhz: int | None
    memory: int
    reasons: int


class DeviceWatch:
    """Samples until it is closed; `use` sums up what was seen, or says in `reason` why nothing."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.reason = ""

    @property
    def use(self) -> DeviceUse | None:
        return use_from_samples(self.samples) if self.samples else None


@contextmanager
def watch_device(device: str) -> Iterator[DeviceWatch]:
    """Watch the GPU beside what runs inside; nothing on a CPU, nor without nvidia-ml-py."""
    watch = DeviceWatch()
    if not cuda_device(device):
        yield watch
        return
    try:
        nvml = import_module("pynvml")
        handle = gpu_handle(nvml, cuda_device(device))
    except UserError as error:
        watch.reason = error.reason
        yield watch
        return
    stop = threading.Event()
    thread = threading.Thread(target=_keep_sampling, args=(nvml, handle, watch, stop))
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
        nvml.nvmlShutdown()


def gpu_handle(nvml: ModuleType, device: str) -> Any:
    """By its UUID: NVML counts all GPUs, CUDA those that CUDA_VISIBLE_DEVICES names.

    Raises UserError where NVML does not know it; else nvmlShutdown is owed.
    """
    import torch

    try:
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except (nvml.NVMLError, RuntimeError, AssertionError, ValueError) as error:
        raise UserError("NVML does not tell of this GPU", seen=error) from error


def _keep_sampling(
    nvml: ModuleType, handle: Any, watch: DeviceWatch, stop: threading.Event
) -> None:
    while not stop.is_set():
        watch.samples.append(read_sample(nvml, handle))
        stop.wait(SECONDS)


def read_sample(nvml: ModuleType, handle: Any) -> Sample:
    """One reading of power, clock, memory and what holds the clocks back."""

    def ask(name: str, *more: int) -> Any:
        try:
            return getattr(nvml, name)(handle, *more)
        except nvml.NVMLError:
            return None

    milliwatts = ask("nvmlDeviceGetPowerUsage")
    memory = ask("nvmlDeviceGetMemoryInfo")
    return Sample(
        watts=None if milliwatts is None else milliwatts / 1000,
        sm_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory=int(memory.used) if memory is not None else 0,
        reasons=int(ask("nvmlDeviceGetCurrentClocksEventReasons") or 0),
    )


def use_from_samples(samples: list[Sample]) -> DeviceUse:
    watts = [sample.watts for sample in samples if sample.watts is not None]
    clocks = [sample.sm_mhz for sample in samples if sample.sm_mhz is not None]
    seen = {
        text: sum(bool(sample.reasons & bit) for sample in samples) / len(samples)
        for bit, text in REASONS.items()
    }
    return DeviceUse(
        samples=len(samples),
        watts=(statistics.mean(watts), max(watts)) if watts else None,
        sm_mhz=(min(clocks), max(clocks)) if clocks else None,
        memory=max(sample.memory for sample in samples),
        throttled={text: share for text, share in seen.items() if share},
    )


def use_from_dict(raw: dict[str, Any]) -> DeviceUse:
    """The inverse of `dataclasses.asdict` after JSON."""
    pairs = {key: tuple(raw[key]) if raw[key] else None for key in ("watts", "sm_mhz")}
    return DeviceUse(**{**raw, **pairs})
