"""What a checkpoint, an ONNX file or an engine directory is; every digest verified."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import sha256_from_file
from ..contract.modules import import_module
from ..contract.types import Size
from ..engine.manifest import (
    GOLDEN,
    GRAPH,
    Manifest,
    graph_precision,
    read_gate,
    read_golden,
    read_manifest,
    verify_files,
)
from ..engine.onnxfile import is_onnx, metadata_from_onnx, read_onnx
from ..engine.tensorrt_backend import TensorRtEngine, cuda_devices
from ..training.checkpoint import read_checkpoint, unet_from_checkpoint
from .memory import activation_bytes, weight_bytes


def describe_model(path: Path) -> dict[str, Any]:
    """A description that JSON can hold. Raises UserError for what is damaged or no model."""
    if path.is_dir():
        return _describe_directory(path)
    if is_onnx(path):
        return _describe_onnx(path)
    return _describe_checkpoint(path)


def _describe_directory(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    verify_files(path, manifest)
    return {
        "kind": "engine",
        **asdict(manifest),
        "precisions": _precisions(manifest),
        **_of_graph(path, manifest),
        "files_verified": True,
        "gate": read_gate(path),
    }


def _precisions(manifest: Manifest) -> dict[str, Any]:
    """Shares, and whence they are known."""
    if graph_precision(manifest.backend, manifest.precision) != manifest.precision:
        return {"from": "computed in bf16 by OpenVINO's hint, the graph is fp32"}
    if manifest.backend.startswith("tensorrt"):
        return {**manifest.precisions, "from": "from the network before the build"}
    return manifest.precisions


def _of_graph(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Inputs, outputs and memory, of an engine that has its graph."""
    if not (path / GRAPH).is_file():
        return {"memory": {}}
    model = read_onnx(path / GRAPH)
    return {
        **_ends_of_engine(model, manifest),
        "memory": _memory(model, path, manifest),
    }


def _ends_of_engine(model: Any, manifest: Manifest) -> dict[str, Any]:
    """The graph's, a side that is the same in all of a plan's profiles as the number it is."""
    ends = _ends_of_graph(model.graph)
    fixed: dict[str, int] = {}
    for name, end in ends["inputs"].items():
        for index, side in enumerate(end["shape"]):
            found = {shape[index] for p in manifest.profiles for shape in p[name]}
            fixed |= {side: found.pop()} if len(found) == 1 else {}
    for end in (*ends["inputs"].values(), *ends["outputs"].values()):
        end["shape"] = [fixed.get(side, side) for side in end["shape"]]
    return ends


def _memory(model: Any, path: Path, manifest: Manifest) -> dict[str, Any]:
    """Bytes. The features' are estimated for the largest shape of the profiles or golden images."""
    image, mask = _largest(path, manifest)
    found: dict[str, Any] = {
        "unit": "bytes",
        "model_file": (path / manifest.model).stat().st_size,
        "weights": weight_bytes(model),
        "features_estimated": activation_bytes(model, image, mask),
        "features_of": {"image": list(image), "size_like": list(mask)},
    }
    if manifest.backend.startswith("tensorrt"):
        found["device_per_slot"] = _device_bytes(path, manifest)
    return found


def _largest(path: Path, manifest: Manifest) -> tuple[tuple[int, ...], Size]:
    """Shapes of the two inputs: of the profile with the most pixels, else of the golden images."""
    shapes = [(p["image"][2], p["size_like"][2]) for p in manifest.profiles]
    if not shapes:
        cases = read_golden(path / GOLDEN)
        shapes = [([1, *case.image.shape], list(case.size)) for case in cases]
    image, mask = max(shapes, key=lambda pair: prod(pair[0]) + prod(pair[1]))
    return tuple(image), (mask[0], mask[1])


def _device_bytes(path: Path, manifest: Manifest) -> int | str:
    """What TensorRT takes for each slot; it tells only once the plan is on its GPU."""
    if not cuda_devices():
        return "only the engine itself can tell, opened on its GPU"
    try:
        with TensorRtEngine(path, manifest, "auto") as engine:
            return engine.device_bytes
    except UserError as error:
        return f"only the engine itself can tell, and it does not open here: {error.reason}"


def _describe_onnx(path: Path) -> dict[str, Any]:
    spec, precision, source = metadata_from_onnx(path)
    graph = read_onnx(path).graph
    return {
        "kind": "onnx",
        "spec": asdict(spec),
        "precision": precision,
        "source": source,
        "sha256": sha256_from_file(path),
        **_ends_of_graph(graph),
        "nodes": len(graph.node),
    }


def _ends_of_graph(graph: Any) -> dict[str, Any]:
    """Inputs and outputs; a side that is dynamic is a name."""
    weights = {value.name for value in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return {
        "inputs": {value.name: _end(value) for value in inputs},
        "outputs": {value.name: _end(value) for value in graph.output},
    }


def _end(value: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    names = import_module("onnx").TensorProto.DataType
    shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return {"dtype": names.Name(kind.elem_type).lower(), "shape": shape}


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    return {
        "kind": "checkpoint of Pytorch-UNet" if checkpoint.bare else "checkpoint",
        "spec": asdict(checkpoint.spec),
        "sha256": sha256_from_file(path),
        "parameters": sum(p.numel() for p in unet_from_checkpoint(checkpoint).parameters()),
        "golden_images": len(checkpoint.golden),
        "resume": {k: v for k, v in checkpoint.resume.items() if isinstance(v, int | float | str)},
    }
