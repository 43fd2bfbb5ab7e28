"""Checkpoint or ONNX → an engine directory, published only when its gate has passed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.errors import GateError, UserError
from ..contract.log import log
from ..contract.spec import SpecOverrides
from ..engine.manifest import MANIFEST, Manifest
from ..engine.open import NO_OVERRIDES
from ..engine.probe import choose_backend, default_precision
from .current import current_build, request_of_build
from .gate import GateCase, GateOptions, GateResult
from .int8 import calibration_inputs
from .modelfile import ModelOptions, write_model
from .onnx_export import BLOCKS
from .publish import OUR_FILES, Draft, gate_cases, publish_engine
from .repair import find_fp32_blocks, overflowing_blocks
from .source import Source, gate_inputs, read_source
from .tensorrt_build import PlanOptions

PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("bf16", "fp32", "int8"),
    "tensorrt": ("fp16", "fp32", "int8"),
    "tensorrt-rtx": ("fp16", "fp32", "int8"),
}
"""What each backend is built in. TensorRT is strongly typed: its precision is the graph's."""


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
    repair = _Repair(source, wanted, options)
    blocks = repair.blocks_that_overflow()
    if blocks:
        return Built(*_build(directory, source, repair.keep(blocks), options, request), why)
    try:
        return Built(*_build(directory, source, wanted, options, request), why)
    except GateError:
        blocks = repair.blocks_that_mend()
        if not blocks:
            raise
    return Built(*_build(directory, source, repair.keep(blocks), options, request), why)


def _build(
    directory: Path,
    source: Source,
    wanted: ModelOptions,
    options: BuildOptions,
    request: dict[str, Any],
) -> tuple[Manifest, GateResult]:
    draft = Draft(source, options.gate, request, wanted.fp32_blocks)
    write = partial(write_model, source=source, options=wanted)
    return publish_engine(directory, draft, write)


class _Repair:
    """Blocks of an fp16 engine that must stay in fp32, where they were left to the gate."""

    def __init__(self, source: Source, wanted: ModelOptions, options: BuildOptions) -> None:
        self._source, self._wanted, self._gate = source, wanted, options.gate
        left_to_us = wanted.precision == "fp16" and options.fp32_blocks is None
        self._checkpoint = source.checkpoint if left_to_us else None

    def blocks_that_overflow(self) -> tuple[str, ...]:
        """Known from the graph, before a plan is built in vain; () where nothing overflows."""
        if self._checkpoint is None or not overflowing_blocks(self._checkpoint, self._cases()):
            return ()
        return self.blocks_that_mend()

    def blocks_that_mend(self) -> tuple[str, ...]:
        if self._checkpoint is None:
            return ()
        with self._source.reference() as reference:
            return find_fp32_blocks(self._checkpoint, reference, self._cases, self._gate)

    def _cases(self) -> Iterable[GateCase]:
        inputs, _ = gate_inputs(self._source, self._gate.images)
        return gate_cases(inputs, self._source.spec, self._gate)

    def keep(self, blocks: tuple[str, ...]) -> ModelOptions:
        log.warning("fp16 fails the gate: %s will stay in fp32", ", ".join(blocks))
        return replace(self._wanted, fp32_blocks=blocks)


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
    if options.plan.refittable and precision == "int8":
        raise UserError(
            "an int8 plan takes no other weights: its ranges belong to those it was built with",
            hint="--precision fp16 --refittable, or --precision int8 without it",
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
