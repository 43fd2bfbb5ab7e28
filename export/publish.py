"""Judge what was written against PyTorch, and publish it as an engine directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contract.files import atomic_path, sha256_from_file
from ..contract.modules import is_installed
from ..contract.spec import ModelSpec, SpecOverrides
from ..engine.base import Engine
from ..engine.manifest import GATE, GOLDEN, MANIFEST, GoldenCase, Manifest, write_golden
from ..engine.open import engine_from_manifest, golden_agreement, open_engine
from ..engine.probe import probe_backends
from ..engine.torch_backend import TorchEngine
from ..training.checkpoint import Golden
from ..training.pairs import checked_pairs, load_pair
from .gate import GateCase, GateOptions, GateResult, judge_engine
from .onnx_export import rounded_masknet
from .source import GOLDEN_CASES, Source, gate_inputs, load_inputs

OUR_FILES = {MANIFEST, GOLDEN, GATE, "model.onnx", "model.plan", "model.xml", "model.bin"}
"""All that an engine directory may hold."""

WriteModel = Callable[[Path, list[GoldenCase]], Manifest]
"""Writes the model file into a directory; gives the manifest as far as it is known."""


@dataclass(frozen=True)
class Draft:
    """What is to be published. request: what was asked; fp32_blocks: of an fp16 model."""

    source: Source
    gate: GateOptions
    request: dict[str, Any]
    fp32_blocks: tuple[str, ...] = ()


def publish_engine(
    directory: Path, draft: Draft, write_model: WriteModel
) -> tuple[Manifest, GateResult]:
    """`directory` appears or is replaced whole, or stays as it was.

    Raises GateError when the gate fails and was not forced.
    """
    source, gate = draft.source, draft.gate
    inputs, kind = gate_inputs(source, gate.images)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory) as temporary, source.reference() as reference:
        temporary.mkdir()
        golden = _golden_cases(reference, load_inputs(inputs[:GOLDEN_CASES], source.spec))
        write_golden(temporary / GOLDEN, golden)
        manifest = replace(write_model(temporary, golden), options=draft.request)
        with _judged_engine(temporary, manifest) as engine:
            graph_only = engine.backend != manifest.backend
            result = judge_engine(
                reference,
                engine,
                gate_cases(inputs, source.spec, gate),
                inputs=kind,
                options=gate,
                graph_only=graph_only,
                rounded=_rounded(draft, manifest.precision) if graph_only else None,
            )
            agreed = golden_agreement(engine, golden)
        if result.failures and not gate.force:
            raise result.error(directory)
        return _publish(temporary, manifest, result, agreed), result


def _golden_cases(reference: Engine, inputs: Iterator[Golden]) -> list[GoldenCase]:
    return [GoldenCase(image, reference.run(image, size)) for image, size in inputs]


def gate_cases(
    inputs: list[Path] | list[Golden], spec: ModelSpec, options: GateOptions
) -> Iterable[GateCase]:
    """What the gate looks at, with the truth where masks were given, one at a time."""
    if options.masks is None or options.images is None:
        return (GateCase(image, size) for image, size in load_inputs(inputs, spec))
    pairs = checked_pairs(options.images, options.masks)
    return (GateCase(*case) for case in (load_pair(pair, spec) for pair in pairs))


def _judged_engine(directory: Path, manifest: Manifest) -> Engine:
    """The engine itself; for a plan that cannot run here, its ONNX graph in ONNX Runtime."""
    runs = {status.name: status.runs for status in probe_backends()}
    if not runs[manifest.backend] and is_installed("onnxruntime"):
        result = SpecOverrides(result=manifest.spec.result)
        return open_engine(directory / "model.onnx", "onnxruntime", "cpu", result)
    return engine_from_manifest(directory, manifest)


def _rounded(draft: Draft, precision: str) -> Engine | None:
    """What tells whether an fp16 plan overflows; only a checkpoint has the network for it."""
    checkpoint = draft.source.checkpoint
    if precision != "fp16" or checkpoint is None:
        return None
    return TorchEngine(checkpoint, "cpu", rounded_masknet(checkpoint, draft.fp32_blocks))


def _publish(directory: Path, draft: Manifest, result: GateResult, golden: float) -> Manifest:
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    (directory / GATE).write_text(text, encoding="utf-8")
    files = {p.name: sha256_from_file(p) for p in sorted(directory.iterdir())}
    keys = ("verdict", "inputs", "agreement", "min_agreement")
    summary = {key: result.to_dict()[key] for key in keys} | {"golden_agreement": golden}
    manifest = replace(draft, files=files, gate=summary)
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
