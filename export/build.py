"""Checkpoint or ONNX → an engine directory, published only when its gate has passed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.errors import GateError, UserError
from ..contract.files import atomic_path, sha256_from_file
from ..contract.log import log
from ..contract.modules import is_installed
from ..contract.spec import ModelSpec, SpecOverrides
from ..engine.base import Engine
from ..engine.manifest import GATE, GOLDEN, MANIFEST, GoldenCase, Manifest, write_golden
from ..engine.open import NO_OVERRIDES, engine_from_manifest, golden_agreement, open_engine
from ..engine.probe import choose_backend, default_precision, probe_backends
from ..engine.torch_backend import TorchEngine
from ..training.checkpoint import Golden
from ..training.pairs import checked_pairs, load_pair
from .current import current_build, request_of_build
from .gate import GateCase, GateOptions, GateResult, judge_engine
from .int8 import calibration_inputs
from .modelfile import ModelOptions, write_model
from .onnx_export import BLOCKS, rounded_masknet
from .repair import find_fp32_blocks
from .source import GOLDEN_CASES, Source, gate_inputs, load_inputs, read_source
from .tensorrt_build import PlanOptions

PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("bf16", "fp32", "int8"),
    "tensorrt": ("fp16", "fp32"),
    "tensorrt-rtx": ("fp16", "fp32"),
}
"""What each backend is built in. TensorRT is strongly typed: its precision is the graph's."""


OUR_FILES = {MANIFEST, GOLDEN, GATE, "model.onnx", "model.plan", "model.xml", "model.bin"}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """backend, precision: "auto" takes the fastest that runs here, and says why.

    calibration: images to measure int8 ranges on; None takes what the gate looks at.
    rebuild: also where `directory` holds what would be built. fp32_blocks: blocks that stay in
    fp32 in an fp16 engine; None finds those without which its gate would fail.
    """

    backend: str = "auto"
    precision: str = "auto"
    overrides: SpecOverrides = NO_OVERRIDES
    calibration: Path | None = None
    rebuild: bool = False
    fp32_blocks: tuple[str, ...] | None = None
    gate: GateOptions = field(default_factory=GateOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(frozen=True)
class Built:
    """What was published; why says how backend and precision were chosen.

    reused: the directory was there already, made of the same by the same.
    """

    manifest: Manifest
    gate: GateResult
    why: str
    reused: bool = False


def build_engine(model: Path, directory: Path, options: BuildOptions) -> Built:
    """Build, judge and publish: `directory` appears whole, or not at all.

    Raises GateError when the gate fails (unless forced), UserError for a wrong request.
    """
    backend, precision, why = _choose(options)
    _check_target(directory)
    source = read_source(model, options.overrides)
    wanted = _model_options(source, backend, precision, options)
    request = request_of_build(backend, options.gate, options.plan, options.calibration)
    request["fp32_blocks"] = None if options.fp32_blocks is None else [*options.fp32_blocks]
    found = current_build(directory, source, backend, precision, request)
    if found is not None and not options.rebuild:
        return Built(*found, why, reused=True)
    make = partial(_build, directory, source, gate=options.gate, request=request)
    try:
        return Built(*make(wanted), why)
    except GateError:
        blocks = _blocks_that_mend(source, wanted, options)
        if not blocks:
            raise
    log.warning("fp16 fails the gate: %s will stay in fp32", ", ".join(blocks))
    return Built(*make(replace(wanted, fp32_blocks=blocks)), why)


def _blocks_that_mend(
    source: Source, wanted: ModelOptions, options: BuildOptions
) -> tuple[str, ...]:
    checkpoint = source.checkpoint
    if wanted.precision != "fp16" or options.fp32_blocks is not None or checkpoint is None:
        return ()
    inputs, _ = gate_inputs(source, options.gate.images)
    cases = partial(_gate_cases, inputs, source.spec, options.gate)
    with source.reference() as reference:
        return find_fp32_blocks(checkpoint, reference, cases, options.gate)


def _build(
    directory: Path,
    source: Source,
    wanted: ModelOptions,
    *,
    gate: GateOptions,
    request: dict[str, Any],
) -> tuple[Manifest, GateResult]:
    inputs, kind = gate_inputs(source, gate.images)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory) as temporary, source.reference() as reference:
        temporary.mkdir()
        golden = _golden_cases(reference, load_inputs(inputs[:GOLDEN_CASES], source.spec))
        write_golden(temporary / GOLDEN, golden)
        draft = replace(write_model(temporary, source, wanted, golden), options=request)
        cases = _gate_cases(inputs, source.spec, gate)
        with _judged_engine(temporary, draft) as engine:
            graph_only = engine.backend != wanted.backend
            result = judge_engine(
                reference,
                engine,
                cases,
                inputs=kind,
                options=gate,
                graph_only=graph_only,
                rounded=_rounded(source, wanted) if graph_only else None,
            )
            agreed = golden_agreement(engine, golden)
        if result.failures and not gate.force:
            raise result.error(directory)
        return _publish(temporary, draft, result, agreed), result


def _choose(options: BuildOptions) -> tuple[str, str, str]:
    """(backend, precision, reason). Raises UserError for a pair that cannot be built."""
    backend, why = options.backend, "as asked"
    if backend == "auto":
        backend, why = choose_backend()
    if backend not in PRECISIONS:
        raise UserError(
            f"no engine directory is built for {backend}", expected=", ".join(PRECISIONS)
        )
    precision = options.precision
    if precision == "auto":
        precision = default_precision(backend)
    if precision not in PRECISIONS[backend]:
        raise UserError(
            f"{backend} is not built in {precision}", expected=", ".join(PRECISIONS[backend])
        )
    return backend, precision, why


def _model_options(
    source: Source, backend: str, precision: str, options: BuildOptions
) -> ModelOptions:
    """Raise UserError for what was asked and would not be looked at."""
    if options.plan.flags() and not backend.startswith("tensorrt"):
        raise UserError(
            f"the {backend} backend has no {', '.join(options.plan.flags())}",
            expected="these flags with --backend tensorrt or tensorrt-rtx alone",
        )
    blocks = _checked_blocks(source, precision, options.fp32_blocks or ())
    model = ModelOptions(
        backend=backend, precision=precision, plan=options.plan, fp32_blocks=blocks
    )
    if precision == "int8":
        found = calibration_inputs(source, options.calibration, options.gate.images)
        return replace(model, calibration=found)
    if options.calibration is not None:
        raise UserError(
            "--calibration measures the ranges of int8",
            seen=f"--precision {precision}",
            hint="--precision int8 --calibration DIR",
        )
    return model


def _checked_blocks(source: Source, precision: str, blocks: tuple[str, ...]) -> tuple[str, ...]:
    if set(blocks) - set(BLOCKS):
        raise UserError("no such block", seen=", ".join(blocks), expected=", ".join(BLOCKS))
    if blocks and (precision != "fp16" or source.checkpoint is None):
        raise UserError(
            "--fp32-blocks keeps blocks of an fp16 engine in fp32",
            seen=f"--precision {precision}, {source.path}",
            expected="--precision fp16 and a checkpoint",
        )
    return blocks


def _check_target(directory: Path) -> None:
    """Nothing but an engine directory, and no file that is not ours, is ever replaced."""
    if directory.name in ("", ".."):
        raise UserError(f"{directory} has no name of its own", expected="a name for a new folder")
    above = (directory, *directory.parents)
    file = next((path for path in above if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise UserError(f"{file} is a file", expected="a folder to write the engine to")
    names = {p.name for p in directory.iterdir()} if directory.is_dir() else set()
    if names and (MANIFEST not in names or names - OUR_FILES):
        raise UserError(
            f"{directory} holds other files",
            seen=", ".join(sorted(names - OUR_FILES or names)[:4]),
            expected="a new folder, or an engine directory to replace",
        )


def _golden_cases(reference: Engine, inputs: Iterator[Golden]) -> list[GoldenCase]:
    return [GoldenCase(image, reference.run(image, size)) for image, size in inputs]


def _gate_cases(
    inputs: list[Path] | list[Golden], spec: ModelSpec, options: GateOptions
) -> Iterator[GateCase]:
    if options.masks is None or options.images is None:
        return (GateCase(image, size) for image, size in load_inputs(inputs, spec))
    pairs = checked_pairs(options.images, options.masks)
    return (GateCase(*case) for case in (load_pair(pair, spec) for pair in pairs))


def _judged_engine(directory: Path, draft: Manifest) -> Engine:
    """The engine itself; for a plan that cannot run here, its ONNX graph in ONNX Runtime."""
    runs = {status.name: status.runs for status in probe_backends()}
    if not runs[draft.backend] and is_installed("onnxruntime"):
        return open_engine(directory / "model.onnx", "onnxruntime", "cpu")
    return engine_from_manifest(directory, draft)


def _rounded(source: Source, wanted: ModelOptions) -> Engine | None:
    """What tells whether an fp16 plan overflows; only a checkpoint has the network for it."""
    if wanted.precision != "fp16" or source.checkpoint is None:
        return None
    net = rounded_masknet(source.checkpoint, wanted.fp32_blocks)
    return TorchEngine(source.checkpoint, "cpu", net)


def _publish(directory: Path, draft: Manifest, result: GateResult, golden: float) -> Manifest:
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    (directory / GATE).write_text(text, encoding="utf-8")
    files = {p.name: sha256_from_file(p) for p in sorted(directory.iterdir())}
    keys = ("verdict", "inputs", "agreement", "min_agreement")
    summary = {key: result.to_dict()[key] for key in keys} | {"golden_agreement": golden}
    manifest = replace(draft, files=files, gate=summary)
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
