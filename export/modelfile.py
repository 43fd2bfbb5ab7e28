"""The model file of an engine directory: ONNX, int8 ONNX, or a plan built from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..engine.manifest import Manifest, graph_precision
from ..engine.probe import package_version, precision_flags
from ..engine.tensorrt_backend import cuda_devices
from ..engine.tensorrt_flavour import import_flavour
from .int8 import Calibration, int8_from_onnx, scheme_of
from .layers import Shares, onnx_shares
from .onnx_export import Precision, onnx_from_checkpoint
from .source import Source
from .tensorrt_build import PlanOptions, plan_from_onnx
from .tensorrt_refit import REFITTABLE


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a model file is made for; calibration is there for int8 alone, fp32_blocks for fp16."""

    backend: str
    precision: str
    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: Calibration | None = None
    fp32_blocks: tuple[str, ...] = ()


def write_model(directory: Path, *, source: Source, options: ModelOptions) -> Manifest:
    """Write the model file; return the manifest as far as it is known before the gate."""
    onnx_path = directory / "model.onnx"
    write_onnx(onnx_path, source, options)
    draft = Manifest(
        spec=source.spec,
        backend=options.backend,
        backend_version=backend_version(options.backend),
        precision=options.precision,
        model=onnx_path.name,
        files={},
        source={"name": source.path.name, "sha256": source.digest},
        gate={},
        calibration=options.calibration.to_dict() if options.calibration else {},
        made_by=f"unetrt {package_version('unetrt')}",
    )
    if options.backend.startswith("tensorrt"):
        return _with_plan(directory, draft, options)
    if graph_precision(options.backend, options.precision) != options.precision:
        return draft  # what it is computed in is not the graph's
    return replace(draft, precisions=_with_blocks(onnx_shares(onnx_path), options))


def _with_plan(directory: Path, draft: Manifest, options: ModelOptions) -> Manifest:
    plan = plan_from_onnx(
        options.backend,
        directory / draft.model,
        draft.spec,
        replace(
            options.plan,
            precision=options.precision,
            fp32_blocks=options.fp32_blocks,
        ),
        cuda_devices(),
    )
    (directory / "model.plan").write_bytes(plan.data)
    target: dict[str, Any] = {
        "compute_capabilities": plan.targets,
        "gpu": plan.gpu,
        "layers": plan.layers,
        "hardware": options.plan.hardware,
        "version_compatible": options.plan.version_compatible,
        REFITTABLE: options.plan.refittable,
    }
    return replace(
        draft,
        model="model.plan",
        backend_version=plan.version,
        profiles=plan.profiles,
        target=target,
        precisions=_with_blocks(plan.shares, options),
        timing_cache=plan.timing_cache,
    )


def _with_blocks(shares: Shares, options: ModelOptions) -> dict[str, Any]:
    kept = {"fp32_blocks": list(options.fp32_blocks)} if options.fp32_blocks else {}
    return {**shares, **kept}


def write_onnx(path: Path, source: Source, options: ModelOptions) -> None:
    """The graph in its precision, from the checkpoint or the ONNX file."""
    found = graph_precision(options.backend, options.precision)
    graph: Precision = "fp16" if found == "fp16" else "bf16" if found == "bf16" else "fp32"
    if options.calibration is None:
        _write_floats(path, source, graph, options.backend, options.fp32_blocks)
        return
    floats = path.with_name("floats.onnx")
    _write_floats(floats, source, graph, options.backend)
    int8_from_onnx(floats, path, options.calibration, scheme_of(options.backend))
    floats.unlink()


def _write_floats(
    path: Path,
    source: Source,
    graph: Precision,
    backend: str,
    fp32_blocks: tuple[str, ...] = (),
) -> None:
    if source.checkpoint is not None:
        onnx_from_checkpoint(source.checkpoint, path, graph, source.digest, fp32_blocks)
    elif source.precision == graph:
        path.write_bytes(source.path.read_bytes())
    else:
        export = f"unetrt export CHECKPOINT -o model.onnx --precision {graph}   writes the other"
        raise UserError(
            f"{source.path} is a graph in {source.precision}",
            expected=f"{graph}, or a checkpoint",
            hint="; ".join(filter(None, (as_it_is(source, backend), export))),
        )


def as_it_is(source: Source, backend: str) -> str:
    """Flags that build from the file's own graph, for `backend` if that is built in it.

    '' for an int8 graph: none do.
    """
    if source.precision == "int8":
        return ""
    return f"{precision_flags(source.precision, backend)}   takes its graph as it is"


def backend_version(backend: str) -> str:
    """The version that a manifest of this backend states."""
    if backend.startswith("tensorrt"):
        return str(import_flavour(backend).__version__)
    names = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
    return package_version(*names.get(backend, (backend,)))
