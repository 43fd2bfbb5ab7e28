"""What a checkpoint, an ONNX file or an engine directory is; every digest verified."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..contract.files import sha256_from_file
from ..engine.manifest import read_gate, read_manifest, verify_files
from ..engine.onnxfile import metadata_from_onnx, read_onnx
from ..training.checkpoint import read_checkpoint


def describe_model(path: Path) -> dict[str, Any]:
    """A description that JSON can hold. Raises UserError for what is damaged or no model."""
    if path.is_dir():
        return _describe_directory(path)
    if path.suffix == ".onnx":
        return _describe_onnx(path)
    return _describe_checkpoint(path)


def _describe_directory(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    verify_files(path, manifest)
    gate = read_gate(path)
    return {"kind": "engine", **asdict(manifest), "files_verified": True, "gate": gate}


def _describe_onnx(path: Path) -> dict[str, Any]:
    spec, precision, source = metadata_from_onnx(path)
    graph = read_onnx(path).graph
    return {
        "kind": "onnx",
        "spec": asdict(spec),
        "precision": precision,
        "source": source,
        "sha256": sha256_from_file(path),
        "inputs": {value.name: _shape(value) for value in graph.input},
        "outputs": {value.name: _shape(value) for value in graph.output},
        "nodes": len(graph.node),
    }


def _shape(value: Any) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    weights = sum(t.numel() for t in checkpoint.state.values() if t.is_floating_point())
    return {
        "kind": "checkpoint of Pytorch-UNet" if checkpoint.bare else "checkpoint",
        "spec": asdict(checkpoint.spec),
        "sha256": sha256_from_file(path),
        "numbers": weights,
        "golden_images": len(checkpoint.golden),
        "resume": {k: v for k, v in checkpoint.resume.items() if isinstance(v, int | float | str)},
    }
