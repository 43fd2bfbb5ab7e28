"""Judge what was written against PyTorch, and publish it as an engine directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..contract.files import atomic_path, sha256_from_file
from ..contract.modules import is_installed
from ..contract.spec import SpecOverrides
from ..engine.base import Engine
from ..engine.levels import Difference
from ..engine.manifest import GATE, GOLDEN, GRAPH, MANIFEST, GoldenCase, Manifest, write_golden
from ..engine.onnxfile import read_onnx
from ..engine.onnxruntime_backend import OnnxRuntimeEngine
from ..engine.open import engine_from_manifest, golden_difference, open_engine
from ..engine.probe import probe_backends
from ..engine.tensorrt_backend import plan_runs_here
from ..training.checkpoint import Golden
from .bfloat16 import rounding_from_bf16
from .gate import GateOptions, GateResult, judge_engine
from .gate_inputs import GateInputs
from .overflow import OverflowProbe
from .source import Source

OUR_FILES = {MANIFEST, GOLDEN, GATE, "model.onnx", "model.plan", "model.xml", "model.bin"}
"""All that an engine directory may hold."""

WriteModel = Callable[[Path], Manifest]
"""Writes the model file into a directory; gives the manifest as far as it is known."""


@dataclass(frozen=True)
class Draft:
    """What is to be published. request: what was asked; fp32_blocks: of an fp16 model.

    inputs: what the gate looks at.
    """

    source: Source
    gate: GateOptions
    request: dict[str, Any]
    inputs: GateInputs
    fp32_blocks: tuple[str, ...] = ()


def publish_engine(
    directory: Path, draft: Draft, write_model: WriteModel
) -> tuple[Manifest, GateResult]:
    """`directory` appears or is replaced whole, or stays as it was.

    Raises GateError when the gate fails and was not forced.
    """
    source, gate = draft.source, draft.gate
    inputs = draft.inputs
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory) as temporary, source.reference() as reference:
        temporary.mkdir()
        golden = _golden_cases(reference, inputs.golden(source.spec))
        write_golden(temporary / GOLDEN, golden)
        manifest = replace(write_model(temporary), options=draft.request)
        with ExitStack() as stack:
            engine = stack.enter_context(_judged_engine(temporary, manifest))
            graph_only = engine.backend != manifest.backend
            result = judge_engine(
                reference,
                engine,
                inputs.cases(source.spec),
                inputs=inputs.kind,
                options=gate,
                graph_only=graph_only,
                rounded=_overflow_probe(stack, temporary, manifest),
                reference_name=source.reference_name,
            )
            off = golden_difference(engine, golden)
        if result.failures and not gate.force:
            raise result.error(directory)
        return _publish(temporary, manifest, result, off), result


def _golden_cases(reference: Engine, inputs: Iterator[Golden]) -> list[GoldenCase]:
    with reference.running() as run:
        return [GoldenCase(image, run(image, size)) for image, size in inputs]


def _judged_engine(directory: Path, manifest: Manifest) -> Engine:
    """The engine itself; for a plan that cannot run here, its ONNX graph in ONNX Runtime."""
    runs = {status.name: status.runs for status in probe_backends()}[manifest.backend]
    if manifest.backend.startswith("tensorrt"):
        runs = runs and plan_runs_here(manifest)
    if not runs and is_installed("onnxruntime"):
        return _engine_of_graph(directory / GRAPH, manifest)
    return engine_from_manifest(directory, manifest)


def _engine_of_graph(path: Path, manifest: Manifest) -> Engine:
    """The graph in ONNX Runtime on the CPU, in bf16 one that rounds as it does."""
    if manifest.precision != "bf16":
        result = SpecOverrides(result=manifest.spec.result)
        return open_engine(path, "onnxruntime", "cpu", result)
    with TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(rounding_from_bf16(read_onnx(path)).SerializeToString())
        return OnnxRuntimeEngine(copy, manifest.spec, "bf16")


def _overflow_probe(stack: ExitStack, directory: Path, manifest: Manifest) -> Engine | None:
    """What tells whether an fp16 graph overflows: what runs it may compute in fp32."""
    if manifest.precision != "fp16":
        return None
    return stack.enter_context(OverflowProbe(directory / "model.onnx", manifest.spec))


def _publish(directory: Path, draft: Manifest, result: GateResult, off: Difference) -> Manifest:
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    (directory / GATE).write_text(text, encoding="utf-8")
    files = {p.name: sha256_from_file(p) for p in sorted(directory.iterdir())}
    keys = ("verdict", "inputs", "agreement", "min_agreement")
    summary = {key: result.to_dict()[key] for key in keys} | off.to_gate()
    manifest = replace(draft, files=files, gate=summary)
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
