"""The machine that a bench ran on, and whether it was quiet."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..contract.cores import usable_cores
from ..engine.extras import describe_gpus
from ..engine.probe import cpu_flags, cpuinfo, describe_machine

FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
NOISY = 0.05
"""Half range of the repeats, as a share of their median, above which the machine was not quiet."""
LOADED = 0.25
"""Load of others, a core, above which it was not quiet before the run."""
BUSY = 0.1
"""Share of the usable cores that others kept busy during a row, from which on it is told."""
CROWDED = 0.33
"""Share of the cores that others kept busy, above which a rate is no rate of this machine."""
SHORTEST = 0.2
"""Seconds below which the kernel's ticks do not tell how busy a core was."""


def describe_bench_machine() -> dict[str, str]:
    """What `describe_machine` says, with processor features, cores, clocks and load by others."""
    found = {
        **describe_machine(),
        **describe_gpus(),
        "features": " ".join(_features()) or "not readable",
        "cores used": f"{usable_cores()} of {os.cpu_count()}",
        "clocks": f"{clocks} before the run" if (clocks := clocks_text()) else "not readable",
        "load before": _load_text(),
    }
    threads = os.environ.get("OMP_NUM_THREADS")
    return {**found, "OMP_NUM_THREADS": threads} if threads else found


def load_before() -> float | None:
    """Mean number of running processes in the last minute; None where it is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _load_text() -> str:
    load = load_before()
    return "not readable" if load is None else f"{load:.2f}"


class OthersClock:
    """How busy others keep the cores that this process may use, while it is `watching`."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = 0.0, 0.0, 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add the seconds of the with block: several spans are one measurement."""
        before = self._now()
        try:
            yield
        finally:
            wall, busy, own = (a - b for a, b in zip(self._now(), before, strict=True))
            self._wall, self._busy, self._own = (
                self._wall + wall,
                self._busy + busy,
                self._own + own,
            )

    def share(self) -> float | None:
        """0 to 1 of those cores; None where the kernel does not tell, or too soon to know."""
        if self._wall < SHORTEST or not self._busy:
            return None
        return max(0.0, self._busy - self._own) / self._wall / usable_cores()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.perf_counter(), _busy_seconds(), time.process_time()


def _busy_seconds() -> float:
    """Of the cores that we may use, by anyone, what the hypervisor took included; 0: not known."""
    try:
        text = Path("/proc/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    ticks = 0
    for name, times in re.findall(r"^cpu(\d+) (.*)$", text, re.MULTILINE):
        user, nice, system, _, _, *more = map(int, times.split())
        ticks += (user + nice + system + sum(more[:3])) * (int(name) in cores)
    return ticks / os.sysconf("SC_CLK_TCK")


def _features() -> list[str]:
    present = cpu_flags()
    return [name for name in FEATURES if name in present]


def clocks_text() -> str:
    """As the kernel reports them now, or ''; in a virtual machine often a constant."""
    values = [float(v) for v in re.findall(r"^cpu MHz\s*: ([\d.]+)$", cpuinfo(), re.MULTILINE)]
    return f"{min(values):.0f} to {max(values):.0f} MHz" if values else ""


def peak_host_bytes() -> int:
    """The most memory that this process has held, in bytes; 0 where it is not known.

    Linux's own ru_maxrss will not do: a child inherits it from the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(found.group(1)) * 1024 if found else 0
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def cuda_device(device: str) -> str:
    """`cuda:N` of an engine's device, which may hold the GPU's name too; '' for a CPU."""
    found = re.search(r"cuda(:\d+)?", device)
    return found.group() if found else ""


def wants_cuda(device: str) -> bool:
    """Whether what is asked for, `auto`, `cpu`, `cuda` or `cuda:N`, is a GPU on this machine."""
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def device_bytes_in_use(device: str) -> int | None:
    """Memory of the GPU that is taken, by whomever, in bytes; None on a CPU."""
    if not cuda_device(device):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(cuda_device(device))
    return int(total - free)
