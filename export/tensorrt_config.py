"""Builder options, each read back after it was set: what a flavour lacks is an error."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import write_atomically
from ..contract.locks import lock_file
from ..contract.log import log
from ..contract.progress import Advance, show_progress

HARDWARE = {"same-cc": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
MIB = 1 << 20
MOST_BYTES = 2**63 - 1
NEW_CACHE = "--timing-cache FILE   with a new FILE: one for each kind of GPU and version"


def set_workspace(trt: Any, config: Any, mebibytes: int) -> None:
    """Memory that a layer may use while it runs; raises UserError where it is not taken."""
    pool = getattr(trt.MemoryPoolType, "WORKSPACE", None)
    wanted = mebibytes * MIB
    if wanted > MOST_BYTES:
        raise _not_taken(trt, "--workspace", mebibytes, f"at most {MOST_BYTES // MIB} MiB")
    with _lacking(trt, "--workspace"):
        config.set_memory_pool_limit(pool, wanted)
        found = config.get_memory_pool_limit(pool)
    if found != wanted:
        raise _not_taken(trt, "--workspace", mebibytes, f"{found // MIB} MiB were read back")


def set_opt_level(trt: Any, config: Any, level: int) -> None:
    """0 builds fastest, 5 searches longest."""
    with _lacking(trt, "--opt-level"):
        config.builder_optimization_level = level
        _require(trt, "--opt-level", config.builder_optimization_level == level)


def set_hardware_compatibility(trt: Any, config: Any, name: str) -> None:
    """GPUs beside this one that the plan is to run on: "same-cc" or "ampere+"."""
    flag = "--hardware-compatibility"
    with _lacking(trt, flag):
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[name])
        config.hardware_compatibility_level = level
        _require(trt, flag, config.hardware_compatibility_level == level)


def set_version_compatible(trt: Any, config: Any) -> None:
    """A plan that later versions of TensorRT run too."""
    with _lacking(trt, "--version-compatible"):
        flag = trt.BuilderFlag.VERSION_COMPATIBLE
        config.set_flag(flag)
        _require(trt, "--version-compatible", config.get_flag(flag))


def set_refittable(trt: Any, config: Any) -> None:
    """A plan that takes other weights of the same network."""
    with _lacking(trt, "--refittable"):
        flag = trt.BuilderFlag.REFIT
        config.set_flag(flag)
        _require(trt, "--refittable", config.get_flag(flag))


def clear_tf32(trt: Any, config: Any) -> None:
    """fp32 means fp32: TensorRT would round to TF32's 10 bits, unasked."""
    with _lacking(trt, "fp32"):
        flag = trt.BuilderFlag.TF32
        config.clear_flag(flag)
        _require(trt, "fp32", not config.get_flag(flag))


@contextmanager
def _lacking(trt: Any, flag: str) -> Iterator[None]:
    """A name or a type that the bindings do not have is an option that they do not have."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise _lacks(trt, flag, error) from error


def _require(trt: Any, flag: str, taken: bool) -> None:
    if not taken:
        raise _lacks(trt, flag, "set, but another value was read back")


def _not_taken(trt: Any, flag: str, value: object, expected: str) -> UserError:
    """Of an option that is there, and has other values."""
    return UserError(
        f"{trt.__name__} {trt.__version__} does not take this {flag}",
        seen=value,
        expected=expected,
        hint=f"the same command with another {flag}, or without it",
    )


def _lacks(trt: Any, flag: str, seen: object) -> UserError:
    return UserError(
        f"{trt.__name__} {trt.__version__} has no {flag}",
        seen=seen,
        hint=f"the same command without {flag}",
    )


class TimingCache:
    """Measured kernels in a file that builds share; written whole, under a lock."""

    def __init__(self, trt: Any, config: Any, path: Path) -> None:
        self._trt, self._config, self._path = trt, config, path
        with _lacking(trt, "--timing-cache"), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self._empty = bytes(config.create_timing_cache(b"").serialize())
            self._cache: Any = self._read()
            taken = config.set_timing_cache(self._cache, False)
        idle = [str(warning.message) for warning in told if "no-op" in str(warning.message)]
        if idle:  # how TensorRT-RTX says that it has none
            raise _lacks(trt, "--timing-cache", idle[0])
        if not taken and path.exists():
            raise UserError(
                f"{path} is a timing cache of another GPU, or of another {trt.__name__}",
                seen="TensorRT does not take it",
                expected=f"one that {trt.__name__} {trt.__version__} made on this GPU",
                hint=NEW_CACHE,
            )
        _require(trt, "--timing-cache", taken)

    def _read(self) -> Any:
        data = self._path.read_bytes() if self._path.exists() else b""
        cache = self._config.create_timing_cache(data)
        if cache is None:
            raise UserError(
                f"{self._path} is not a timing cache of {self._trt.__name__}",
                seen=f"{len(data)} bytes",
                hint=NEW_CACHE,
            )
        return cache

    def save(self) -> str | None:
        """Join what other builds have written meanwhile; return the file's SHA-256.

        None where that fails: the plan is built, and worth more than what was measured.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.with_name(self._path.name + ".lock")):
                return self._joined()
        except OSError as error:
            self._not_kept(error)
            return None

    def _joined(self) -> str | None:
        if self._path.exists():
            try:
                other = self._read()
            except UserError as error:
                self._not_kept(error.reason)
                return None
            if not self._cache.combine(other, False):
                self._not_kept("another GPU's or version's was written there meanwhile")
                return None
        data = bytes(self._cache.serialize() or b"")
        if data in (b"", self._empty):
            self._not_kept("nothing was measured")
            return None
        write_atomically(self._path, data)
        return hashlib.sha256(data).hexdigest()

    def _not_kept(self, why: object) -> None:
        log.warning("%s stays as it is, the plan is built without it: %s", self._path, why)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        lock_file(file, wait=True)
        yield


def build_serialized(trt: Any, builder: Any, network: Any, config: Any) -> Any:
    """The plan, or None; progress is shown, and Ctrl-C stops the build at its next step."""
    stop = threading.Event()
    with show_progress("build the plan", 100, "%") as advance:
        config.progress_monitor = make_monitor(trt, advance, stop)
        # TensorRT calls its monitor where no KeyboardInterrupt may be raised.
        with ThreadPoolExecutor(1, thread_name_prefix="build") as pool:
            running = pool.submit(builder.build_serialized_network, network, config)
            try:
                return running.result()
            except KeyboardInterrupt:
                stop.set()
                wait([running])
                raise


class _Phase:
    def __init__(self, parent: str | None, steps: int) -> None:
        self.parent, self.steps, self.done = parent, max(1, steps), 0


class BuildProgress:
    """Percent of a tree of phases that is done, handed on as it grows."""

    def __init__(self, advance: Advance) -> None:
        self._advance, self._shown = advance, 0
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, steps)

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._show()

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase and phase.parent is None:
                self._show(100)

    def _show(self, percent: int | None = None) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        found = percent or int(100 * max((self._share(name) for name in roots), default=0))
        if found > self._shown:
            self._advance(found - self._shown)
            self._shown = found

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        below = [n for n, other in self._phases.items() if other.parent == name and n != name]
        part = max((self._share(n) for n in below), default=0.0)
        return min(1.0, (phase.done + part) / phase.steps)


def make_monitor(trt: Any, advance: Callable[[int], None], stop: threading.Event) -> Any:
    """TensorRT's progress as percent; a set `stop` cancels at the next step."""
    progress = BuildProgress(advance)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.start(name, parent, steps)

        def phase_finish(self, name: str) -> None:
            if not stop.is_set():  # what is cancelled finishes its phases too
                progress.finish(name)

        def step_complete(self, name: str, step: int) -> bool:
            progress.step(name, step)
            return not stop.is_set()

    return Monitor()
