"""Open any model: an engine directory, an ONNX file or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..contract.errors import UserError
from ..contract.log import log
from ..contract.spec import ModelSpec, Result, SpecOverrides
from ..contract.types import U8
from .base import Engine
from .manifest import (
    GATE,
    GOLDEN,
    REBUILD,
    GoldenCase,
    Manifest,
    read_golden,
    read_manifest,
    verify_files,
)
from .onnxfile import is_onnx, metadata_from_onnx, require_runnable

BACKENDS = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
AS_A_JOB = 3
"""Batches: one as it comes, one that is captured, one that is the graph of before."""

FLAGS = {
    "scale": "--scale",
    "threshold": "--mask-threshold",
    "mask_values": "--mask-values",
    "bit_depth": "--bit-depth",
}
"""What is asked for on the command line → by which flag."""

NO_OVERRIDES = SpecOverrides()


def open_engine(
    path: Path,
    backend: str = "auto",
    device: str = "auto",
    overrides: SpecOverrides = NO_OVERRIDES,
    threads: int | None = None,
) -> Engine:
    """Open `path` with the backend that its form implies, or the one named.

    An engine directory is verified, opened with its own backend and its golden masks replayed;
    an ONNX file runs in ONNX Runtime; a checkpoint in PyTorch fp32, the reference.
    threads: what an engine on the CPU computes with; None takes every core.
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
            hint=f"unetrt build {path} -o ENGINE_DIR --backend {backend}",
        )
    from .torch_backend import torch_engine_from_checkpoint

    engine = torch_engine_from_checkpoint(path, device, overrides, threads)
    engine.why = "a checkpoint runs in PyTorch fp32; unetrt build makes a faster engine of it"
    return engine


def _engine_from_onnx(
    path: Path, backend: str, device: str, overrides: SpecOverrides, threads: int | None
) -> Engine:
    spec, precision, _ = metadata_from_onnx(path)
    require_runnable(path, precision)
    check_overrides(path, spec, overrides)
    chosen = "onnxruntime" if backend == "auto" else backend
    if chosen not in ("onnxruntime", "openvino"):
        raise UserError(
            f"{path} is an ONNX file: the {chosen} backend does not run it as it is",
            hint=f"unetrt build {path} -o ENGINE_DIR --backend {chosen}",
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
            hint="-m CHECKPOINT   runs in PyTorch" if backend == "torch" else build,
        )
    engine = engine_from_manifest(path, manifest, device, threads)
    engine.why = "the directory's own backend"
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
    return _engine_from_model(manifest.backend, model, manifest.spec, precision, device, threads)


def _engine_from_model(
    backend: str, model: Path, spec: ModelSpec, precision: str, device: str, threads: int | None
) -> Engine:
    if backend == "onnxruntime" and device.startswith("cuda"):
        from .onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(model, spec, precision, device)
    if backend == "onnxruntime":
        from .onnxruntime_backend import OnnxRuntimeEngine

        return OnnxRuntimeEngine(model, spec, precision, device, threads=threads)
    if backend == "openvino":
        from .openvino_backend import OpenVinoEngine

        return OpenVinoEngine(model, spec, precision, device, threads=threads)
    raise UserError("no such backend", seen=backend, expected=", ".join(BACKENDS))


def replay_golden(engine: Engine, path: Path, manifest: Manifest) -> None:
    """Raise UserError unless the golden masks come out again on this device, within the gate.

    A plan built without its GPU meets the gate here for the first time. An engine that was
    published although it failed is let through with a warning. The gate looks at more images
    than the golden ones: where those few were below its bound, they need not be above it now.
    """
    if manifest.gate["verdict"] == "failed":
        log.warning("%s failed its gate and was published by --force: see %s", path, path / GATE)
        return
    bound = min(manifest.gate["min_agreement"], manifest.gate.get("golden_agreement", 1.0))
    found = golden_agreement(engine, read_golden(path / GOLDEN))
    if found < bound:
        raise UserError(
            f"{path} gives other masks on this device than PyTorch gave when it was built",
            seen=f"{found:.4%} of the golden masks' pixels equal",
            expected=f"at least {bound:.4%}",
            hint=REBUILD.format(path),
        )


def golden_agreement(engine: Engine, cases: list[GoldenCase]) -> float:
    """Share of the pixels in which the engine's masks are the golden ones."""
    equal = total = 0
    for case in cases:
        if case.image.shape[2] == engine.spec.channels:
            for mask in _golden_masks(engine, case):
                equal += case.equal(mask)
                total += case.mask.size
        else:
            total += case.mask.size
    return equal / total


def _golden_masks(engine: Engine, case: GoldenCase) -> Iterator[U8]:
    """In a slot of the least batch; where graphs are replayed, as a job's batches run too."""
    yield engine.run(case.image, case.size)
    if engine.graphs is None:
        return
    slot = engine.slot()
    try:
        for _ in range(AS_A_JOB):
            slot.reserve(engine.batch, (case.image.shape[0], case.image.shape[1]))[:] = case.image
            slot.submit(engine.batch, case.size)
            yield from slot.masks()
    finally:
        slot.close()


def check_overrides(path: Path, spec: ModelSpec, overrides: SpecOverrides) -> None:
    """An exported model has its spec built in: another value is a wrong request."""
    if overrides.result != spec.result:
        raise _other_result(path, spec.result)
    for name in overrides.conflicts_with(spec):
        wanted, built_in = (_typed(getattr(values, name)) for values in (overrides, spec))
        raise UserError(
            f"{path} was made with another {name}",
            seen=f"{wanted} asked",
            expected=f"{built_in}, or no flag",
            hint=f"unetrt build CHECKPOINT -o OTHER_DIR {FLAGS[name]} {wanted}",
        )


def _typed(value: object) -> str:
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
            hint=f"unetrt predict -m {path} … --format prob   writes them; build has --result prob",
        )
    return UserError(
        f"{path} gives masks, not probabilities",
        expected="a checkpoint, or a model that was made for them",
        hint="unetrt build CHECKPOINT -o ENGINE_DIR --result prob   makes one; so does export",
    )
