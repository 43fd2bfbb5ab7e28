"""Open any model: an engine directory, an ONNX file or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UserError, as_word
from ..contract.log import log
from ..contract.spec import NO_OVERRIDES, ModelSpec, Result, SpecOverrides
from ..contract.types import NO_CLASS, U8
from .base import Engine, Slot
from .levels import MAX_LEVEL_ERROR, Difference, LevelError, mask_from_result
from .manifest import (
    GATE,
    GOLDEN,
    GoldenCase,
    Manifest,
    read_golden,
    read_manifest,
    rebuild_hint,
    verify_files,
)
from .onnxfile import is_onnx, metadata_from_onnx, require_runnable

BACKENDS = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
AS_A_JOB = 3
"""Batches: one as it comes, one that is captured, one that is the graph of before."""
ROUNDING = 1e-9
"""Of a share that is compared with one that a manifest holds."""

FLAGS = {
    "scale": "--scale",
    "threshold": "--mask-threshold",
    "mask_values": "--mask-values",
    "bit_depth": "--bit-depth",
}
"""What is asked for on the command line → by which flag."""


def open_engine(
    path: Path,
    backend: str = "auto",
    device: str = "auto",
    overrides: SpecOverrides = NO_OVERRIDES,
    threads: int | None = None,
) -> Engine:
    """Open `path` with the backend that its form implies, or the one named.

    An engine directory is verified, opened with its own backend and its golden masks replayed;
    an ONNX file runs in ONNX Runtime; a checkpoint in PyTorch: in fp32, on CUDA in TF32.
    threads: what an engine on the CPU computes with; None takes every core, or as many as a
    container grants.
    Raises UserError with the command that helps; `engine.why` says what was chosen.
    """
    if path.is_dir():
        return _engine_from_directory(path, backend, device, overrides, threads)
    if is_onnx(path):
        return _engine_from_onnx(path, backend, device, overrides, threads)
    return _engine_from_checkpoint(path, backend, device, overrides, threads)


def _engine_from_checkpoint(
    path: Path, backend: str, device: str, overrides: SpecOverrides, threads: int | None
) -> Engine:
    if backend not in ("auto", "torch"):
        raise UserError(
            f"{path} is a checkpoint: the {backend} backend does not run it as it is",
            hint=f"unetrt build {as_word(path)} -o ENGINE_DIR --backend {backend}",
        )
    from .torch_backend import torch_engine_from_checkpoint

    engine = torch_engine_from_checkpoint(path, device, overrides, threads)
    engine.why = (
        f"a checkpoint runs in PyTorch {engine.precision}; unetrt build makes a faster engine of it"
    )
    return engine


def _engine_from_onnx(
    path: Path, backend: str, device: str, overrides: SpecOverrides, threads: int | None
) -> Engine:
    spec, precision, _ = metadata_from_onnx(path)
    require_runnable(path, precision)
    check_overrides(path, spec, overrides)
    chosen = "onnxruntime" if backend == "auto" else backend
    if chosen not in ("onnxruntime", "openvino"):
        source = as_word(path) if chosen != "torch" or precision == "fp16" else "CHECKPOINT"
        raise UserError(
            f"{path} is an ONNX file: the {chosen} backend does not run it as it is",
            hint=f"unetrt build {source} -o ENGINE_DIR --backend {chosen}",
        )
    engine = _engine_from_model(chosen, path, spec, precision, device, threads)
    engine.why = "an ONNX file runs in ONNX Runtime" if backend == "auto" else "as asked"
    return engine


def _engine_from_directory(
    path: Path, backend: str, device: str, overrides: SpecOverrides, threads: int | None
) -> Engine:
    manifest = read_manifest(path)
    verify_files(path, manifest)
    check_overrides(path, manifest.spec, overrides)
    if backend not in ("auto", manifest.backend):
        build = f"unetrt build CHECKPOINT -o OTHER_DIR --backend {backend}"
        raise UserError(
            f"{path} was built for another backend",
            seen=manifest.backend,
            expected=backend,
            hint="name the checkpoint: it runs in PyTorch" if backend == "torch" else build,
        )
    engine = engine_from_manifest(path, manifest, device, threads)
    engine.why = "the directory's own backend"
    if (engine.backend, engine.device) == ("torch", "cpu"):
        log.warning(
            "%s runs in PyTorch in %s on the CPU, where that is slow: "
            "unetrt build CHECKPOINT -o OTHER_DIR --backend openvino   makes an engine for it",
            path,
            engine.precision,
        )
    try:
        replay_golden(engine, path, manifest)
    except UserError:
        engine.close()
        raise
    return engine


def engine_from_manifest(
    path: Path, manifest: Manifest, device: str = "auto", threads: int | None = None
) -> Engine:
    """Open the model file of a directory, its digests and golden masks not looked at."""
    if manifest.backend in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt_backend import TensorRtEngine

        return TensorRtEngine(path, manifest, device)
    model = path / manifest.model
    precision = manifest.precision
    return _engine_from_model(
        manifest.backend, model, manifest.spec, precision, device, threads, judged=True
    )


def _engine_from_model(
    backend: str,
    model: Path,
    spec: ModelSpec,
    precision: str,
    device: str,
    threads: int | None,
    judged: bool = False,
) -> Engine:
    """judged: its masks are compared on the device before it is used, as a directory's are."""
    if backend == "onnxruntime" and device.startswith("cuda"):
        from .onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(model, spec, precision, device, fused=judged)
    if backend == "onnxruntime":
        from .onnxruntime_backend import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, spec, precision, device, threads=threads)
    if backend == "openvino":
        from .openvino_backend import OpenVinoEngine

        return OpenVinoEngine(model, spec, precision, device, threads=threads)
    if backend == "torch":
        from .torch_backend import FusedEngine

        return FusedEngine(model, spec, precision, device, threads=threads)
    raise UserError("no such backend", seen=backend, expected=", ".join(BACKENDS))


def replay_golden(engine: Engine, path: Path, manifest: Manifest) -> None:
    """Raise UserError unless the golden masks come out again on this device, within the gate.

    A plan built without its GPU meets the gate here for the first time. An engine that was
    published although it failed is let through with a warning. The gate looks at more images
    than the golden ones: where those few missed its bound, they may be off twice as much as then,
    for another device rounds other pixels.
    """
    if manifest.gate["verdict"] == "failed":
        log.warning("%s failed its gate and was published by --force: see %s", path, path / GATE)
        return
    found = golden_difference(engine, read_golden(path / GOLDEN))
    least, most = _least_agreement(manifest.gate), _most_level_error(manifest)
    if found.agreement < least - ROUNDING:
        raise UserError(
            f"{path} gives other masks on this device than PyTorch gave when it was built",
            seen=f"{found.agreement:.4%} of the golden masks' pixels equal",
            expected=f"at least {least:.4%}",
            hint=rebuild_hint(path),
        )
    if found.level_error is not None and found.level_error > most + ROUNDING:
        raise UserError(
            f"{path} gives other probabilities on this device than PyTorch gave when it was built",
            seen=f"off by {found.level_error:.3g} levels of 255",
            expected=f"at most {most:.3g}",
            hint=rebuild_hint(path),
        )


def _least_agreement(gate: dict[str, Any]) -> float:
    """Twice the wrong share leaves nothing to ask of golden masks that half agreed."""
    least: float = gate["min_agreement"]
    measured: float = gate.get("golden_agreement", 1.0)
    return least if measured >= least else max(2 * measured - 1, measured / 2)


def _most_level_error(manifest: Manifest) -> float:
    most = MAX_LEVEL_ERROR.get(manifest.precision, 0.0)
    measured: float = manifest.gate.get("golden_level_error", 0.0)
    return most if measured <= most else 2 * measured


def golden_difference(engine: Engine, cases: list[GoldenCase]) -> Difference:
    """How far the engine's results are off the golden ones, in all ways that it runs."""
    spec, levels = engine.spec, LevelError()
    equal = total = 0
    for golden, found in _golden_results(engine, cases):
        levels.update(golden, found)
        mask = mask_from_result(golden, spec)
        equal += int(np.count_nonzero(mask == mask_from_result(found, spec)))
        total += mask.size
    return Difference(equal / total, levels.result() if spec.planes else None)


def _golden_results(engine: Engine, cases: list[GoldenCase]) -> Iterator[tuple[U8, U8]]:
    """In a slot of the least batch, and as a job's batches run where those are others."""
    fitting = [case for case in cases if case.image.shape[2] == engine.spec.channels]
    others = (case for case in cases if case.image.shape[2] != engine.spec.channels)
    yield from ((case.mask, np.full_like(case.mask, NO_CLASS)) for case in others)
    with engine.running() as run:
        yield from ((case.mask, run(case.image, case.size)) for case in fitting)
    jobs = [(case, _job_batch(engine, case)) for case in fitting]
    if engine.graphs is None:
        jobs = [(case, batch) for case, batch in jobs if batch != engine.batch]
    if not jobs:  # a slot on a GPU has streams and pinned memory
        return
    times = 1 if engine.graphs is None else AS_A_JOB
    with closing(engine.slot()) as slot:
        for case, batch in jobs:
            found = _as_a_job(slot, batch, case, times)
            yield from ((case.mask, mask) for mask in found)


def _job_batch(engine: Engine, case: GoldenCase) -> int:
    return engine.batch_for((case.image.shape[0], case.image.shape[1]))


def _as_a_job(slot: Slot, batch: int, case: GoldenCase, times: int) -> Iterator[U8]:
    for _ in range(times):
        slot.reserve(batch, (case.image.shape[0], case.image.shape[1]))[:] = case.image
        slot.submit(batch, case.size)
        yield from slot.masks()


def check_overrides(path: Path, spec: ModelSpec, overrides: SpecOverrides) -> None:
    """An exported model has its spec built in: another value is a wrong request."""
    if overrides.result != spec.result:
        raise _other_result(path, spec.result)
    for name in overrides.conflicts_with(spec):
        wanted, built_in = (as_typed(getattr(values, name)) for values in (overrides, spec))
        raise UserError(
            f"{path} was made with another {name}",
            seen=f"{wanted} asked",
            expected=f"{built_in}, or no flag",
            hint=f"unetrt build CHECKPOINT -o OTHER_DIR {FLAGS[name]} {wanted}",
        )


def as_typed(value: object) -> str:
    """A value as its flag takes it."""
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)


def _other_result(path: Path, result: Result) -> UserError:
    """A graph gives masks or probabilities, and what takes the one cannot use the other."""
    if result == "prob":
        return UserError(
            f"{path} gives probabilities",
            expected="a model that gives masks",
            hint=f"unetrt predict -m {as_word(path)} … --format prob   writes them; "
            "build has --result prob",
        )
    return UserError(
        f"{path} gives masks, not probabilities",
        expected="a checkpoint, or a model that was made for them",
        hint="unetrt build CHECKPOINT -o ENGINE_DIR --result prob   makes one; so does export",
    )
