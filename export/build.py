"""Checkpoint or ONNX → an engine directory, published only when its gate has passed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from ..contract.errors import GateError, UserError
from ..contract.log import log
from ..contract.spec import NO_OVERRIDES, SpecOverrides
from ..engine.manifest import FORMAT, MANIFEST, Manifest, is_part_of_engine
from ..engine.onnxfile import EXPORT_HINT
from ..engine.probe import PRECISIONS, choose_backend, default_precision, precision_flags
from ..engine.tensorrt_backend import cuda_devices
from .current import current_build, request_of_build
from .gate import GateOptions, GateResult
from .gate_inputs import GateInputs, read_gate_inputs
from .int8 import calibration_inputs
from .modelfile import ModelOptions, as_it_is, write_model
from .onnx_export import BLOCKS
from .profiles import range_of_gate, range_of_sizes
from .publish import OUR_FILES, Draft, publish_engine
from .repair import find_fp32_blocks, one_block_more, overflowing_blocks
from .source import Source, read_source
from .tensorrt_build import PlanOptions, check_plan_options

BLOCKS_FLAG = "--fp32-blocks"
MANIFEST_START = '{\n  "spec": {'


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """backend, precision: "auto" takes the fastest that runs here, and says why.

    calibration: images to measure int8 ranges on; None takes what the gate looks at.
    rebuild: also where `directory` holds what would be built. fp32_blocks: blocks that stay in
    fp32 in an fp16 engine; None finds those without which its gate would fail.
    typed: flags of a plan or of fp16 as they were typed, where the values do not tell.
    """

    backend: str = "auto"
    precision: str = "auto"
    overrides: SpecOverrides = NO_OVERRIDES
    calibration: Path | None = None
    rebuild: bool = False
    fp32_blocks: tuple[str, ...] | None = None
    gate: GateOptions = field(default_factory=GateOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    typed: tuple[str, ...] = ()


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
    directory = _checked_target(directory)
    source = read_source(model, options.overrides)
    backend, precision, why = _choose(options, source)
    wanted = _model_options(source, backend, precision, options)
    request = request_of_build(backend, options.gate, options.plan, options.calibration)
    request["fp32_blocks"] = None if options.fp32_blocks is None else [*options.fp32_blocks]
    found = current_build(directory, source, backend, precision, request, options.gate.force)
    if found is not None and not options.rebuild:
        return Built(*found, why, reused=True)
    inputs = read_gate_inputs(source, options.gate)
    if backend.startswith("tensorrt"):
        wanted = replace(wanted, plan=_with_ranges(options.plan, inputs))
        asked = replace(wanted.plan, precision=precision)
        check_plan_options(backend, source.spec, asked, cuda_devices())
        inputs = inputs.within(wanted.plan.ranges, source.spec)
    _warn_of_ranges(options, wanted, inputs)
    draft = Draft(source, options.gate, request, inputs=inputs)
    return Built(*_build_repaired(directory, draft, wanted, options), why)


def _with_ranges(plan: PlanOptions, inputs: GateInputs) -> PlanOptions:
    """A profile that spans all that the gate looks at, where no sizes were asked."""
    if plan.ranges:
        return plan
    if plan.sizes:
        return replace(plan, ranges=(range_of_sizes(plan.sizes),))
    found = range_of_gate(inputs.sizes)
    if inputs.kind == "synthetic":
        log.warning(
            "the plan takes images of %s alone, the size of drawn pictures: "
            "--size HxW or --sizes-from DIR names yours",
            found,
        )
    return replace(plan, ranges=(found,))


def _warn_of_ranges(options: BuildOptions, wanted: ModelOptions, inputs: GateInputs) -> None:
    own, judged = options.calibration, options.gate.images
    alike = own is None or (judged is not None and own.resolve() == judged.resolve())
    if wanted.calibration is not None and alike:
        log.warning(
            "int8 ranges are measured on what the gate judges by (%s), which flatters its verdict: "
            "--calibration DIR takes other images",
            inputs.kind,
        )


def _build_repaired(
    directory: Path, draft: Draft, wanted: ModelOptions, options: BuildOptions
) -> tuple[Manifest, GateResult]:
    """As wanted; in fp16 with blocks in fp32 where its gate would fail without them.

    One block more where an engine that was mended fails it by itself.
    """
    repair = _Repair(draft, wanted, options)
    blocks = repair.blocks_that_overflow()
    if not blocks:
        try:
            return _build(directory, draft, wanted)
        except GateError:
            blocks = repair.blocks_that_mend
            if not blocks:
                raise
    try:
        return _build(directory, draft, repair.keep(blocks))
    except GateError:
        blocks = repair.one_more(blocks)
        if not blocks:
            raise
    return _build(directory, draft, repair.keep(blocks))


def _build(directory: Path, draft: Draft, wanted: ModelOptions) -> tuple[Manifest, GateResult]:
    return publish_engine(
        directory,
        replace(draft, fp32_blocks=wanted.fp32_blocks),
        lambda folder: write_model(folder, source=draft.source, options=wanted),
    )


class _Repair:
    """Blocks of an fp16 engine that must stay in fp32, where they were left to the gate."""

    def __init__(self, draft: Draft, wanted: ModelOptions, options: BuildOptions) -> None:
        self._source, self._wanted, self._gate = draft.source, wanted, options.gate
        left_to_us = wanted.precision == "fp16" and options.fp32_blocks is None
        self._checkpoint = draft.source.checkpoint if left_to_us else None
        self._cases = partial(draft.inputs.cases, draft.source.spec)

    def blocks_that_overflow(self) -> tuple[str, ...]:
        """Known from the graph, before a plan is built in vain; () where nothing overflows."""
        return self.blocks_that_mend if self._must else ()

    @cached_property
    def _must(self) -> tuple[str, ...]:
        return overflowing_blocks(self._checkpoint, self._cases()) if self._checkpoint else ()

    @cached_property
    def blocks_that_mend(self) -> tuple[str, ...]:
        """() where fp32 in every block would not help: the gate then says what is wrong."""
        if self._checkpoint is None:
            return ()
        with self._source.reference() as reference:
            return find_fp32_blocks(
                self._checkpoint, reference, self._cases, self._gate, self._must
            )

    def one_more(self, blocks: tuple[str, ...]) -> tuple[str, ...]:
        """() where all are in fp32."""
        assert self._checkpoint is not None
        with self._source.reference() as reference:
            return one_block_more(self._checkpoint, reference, self._cases, self._gate, blocks)

    def keep(self, blocks: tuple[str, ...]) -> ModelOptions:
        log.warning("fp16 fails the gate: %s will stay in fp32", ", ".join(blocks))
        return replace(self._wanted, fp32_blocks=blocks)


def _choose(options: BuildOptions, source: Source) -> tuple[str, str, str]:
    """(backend, precision, reason). Raises UserError for a pair that cannot be built."""
    backend, why = options.backend, "as asked"
    if backend == "auto":
        backend, why = choose_backend(lacks=partial(_lack, options.precision, source))
    if backend not in PRECISIONS:
        raise UserError(
            f"no engine directory is built for {backend}", expected=", ".join(PRECISIONS)
        )
    precision = options.precision
    if precision == "auto":
        precision, reason = _auto_precision(backend, source)
        why += reason
    if precision not in PRECISIONS[backend]:
        raise UserError(
            f"{backend} is not built in {precision}",
            expected=", ".join(PRECISIONS[backend]),
            hint=precision_flags(precision, backend) or None,
        )
    return backend, precision, why


def _lack(precision: str, source: Source, backend: str) -> str:
    """Why `auto` passes a backend over: it is not built in what is asked, or in what a graph is."""
    asked = source.precision if precision == "auto" and source.checkpoint is None else precision
    known = PRECISIONS.get(backend, ())
    return "" if asked == "auto" or asked in known else f"it is not built in {asked}"


def _auto_precision(backend: str, source: Source) -> tuple[str, str]:
    """The backend's fastest, if the graph of an ONNX file can become that; else the graph's."""
    best = default_precision(backend)
    graph = "fp16" if best == "fp16" else "fp32"
    if source.checkpoint is not None or source.precision == graph:
        return best, ""
    if source.precision in PRECISIONS[backend] and source.precision != "int8":
        return source.precision, f"; {source.precision}, as the graph of {source.path.name} is"
    raise UserError(
        f"{backend} is not built from a graph in {source.precision}",
        seen=source.path,
        expected=f"a graph in {graph}, or a checkpoint",
        hint=as_it_is(source, backend) or EXPORT_HINT,
    )


def _model_options(
    source: Source, backend: str, precision: str, options: BuildOptions
) -> ModelOptions:
    """Raise UserError for what was asked and would not be looked at."""
    flags = _plan_flags(options)
    if flags and not backend.startswith("tensorrt"):
        raise UserError(
            f"the {backend} backend has no {', '.join(flags)}",
            expected="these flags with --backend tensorrt or tensorrt-rtx alone",
        )
    if options.plan.refittable and precision == "int8":
        raise UserError(
            "an int8 plan takes no other weights: its ranges belong to those it was built with",
            hint="--precision fp16 --refittable, or --precision int8 without it",
        )
    blocks = _checked_blocks(source, precision, options)
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


def _plan_flags(options: BuildOptions) -> list[str]:
    """Those of --size may have come from --sizes-from."""
    typed = [flag for flag in options.typed if flag != BLOCKS_FLAG]
    from_folder = "--sizes-from" in typed
    others = [f for f in options.plan.flags() if f != "--size" or not from_folder]
    return list(dict.fromkeys([*typed, *others]))


def _checked_blocks(source: Source, precision: str, options: BuildOptions) -> tuple[str, ...]:
    blocks = options.fp32_blocks or ()
    asked = bool(blocks) or BLOCKS_FLAG in options.typed
    if set(blocks) - set(BLOCKS):
        raise UserError("no such block", seen=", ".join(blocks), expected=", ".join(BLOCKS))
    if (asked and precision != "fp16") or (blocks and source.checkpoint is None):
        raise UserError(
            "--fp32-blocks keeps blocks of an fp16 engine in fp32",
            seen=f"--precision {precision}, {source.path}",
            expected="--precision fp16 and a checkpoint",
        )
    return blocks


def _checked_target(directory: Path) -> Path:
    """What a link leads to. Nothing but an engine directory, all of it ours, is ever replaced."""
    above = (directory, *directory.parents)
    lost = next((path for path in above if path.is_symlink() and not path.exists()), None)
    if lost is not None:
        raise UserError(
            f"{lost} is a link that leads nowhere",
            seen=lost.readlink(),
            expected="a folder to write the engine to",
        )
    directory = directory.resolve() if directory.is_symlink() else directory
    if directory.name in ("", ".."):
        raise UserError(f"{directory} has no name of its own", expected="a name for a new folder")
    above = (directory, *directory.parents)
    file = next((path for path in above if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise UserError(f"{file} is a file", expected="a folder to write the engine to")
    entries = list(directory.iterdir()) if directory.is_dir() else []
    others = [p.name for p in entries if p.name not in OUR_FILES or p.is_symlink() or p.is_dir()]
    ours = is_part_of_engine(directory) or _is_ours(directory / MANIFEST)
    if others or (entries and not ours):
        raise UserError(
            f"{directory} holds other files",
            seen=", ".join(sorted(others or [p.name for p in entries])[:4]),
            expected="a new folder, or an engine directory to replace",
        )
    return directory


def _is_ours(manifest: Path) -> bool:
    """engine.json of any version of this format; one cut short begins as we begin it."""
    try:
        text = manifest.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return text.startswith(MANIFEST_START)
    family = FORMAT.rpartition("-")[0]
    return isinstance(raw, dict) and str(raw.get("format", "")).rpartition("-")[0] == family
