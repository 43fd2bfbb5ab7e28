"""ONNX files of ours: the spec in their metadata. Reads protobuf only, runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import require_file
from ..contract.modules import import_module
from ..contract.spec import ModelSpec

SPEC_KEY, PRECISION_KEY, SOURCE_KEY = "unetrt.spec", "unetrt.precision", "unetrt.source"
_UINT8 = 2
"""TensorProto.UINT8."""
_WEIGHT_TYPES = {
    "fp32": {"FLOAT"},
    "fp16": {"FLOAT16", "FLOAT"},
    "bf16": {"BFLOAT16", "FLOAT"},
}
"""Types of a convolution's weights, by the graph's precision; blocks may stay in fp32."""
_LAST_KERNEL = "net.outc.conv.weight"
EXPORT_HINT = "unetrt export CHECKPOINT -o model.onnx   writes one"


def is_onnx(path: Path) -> bool:
    """By its name, in letters of either case."""
    return path.suffix.lower() == ".onnx"


def read_onnx(path: Path) -> Any:
    """The onnx.ModelProto, weights of convolutions as initializers. UserError: it is not ONNX."""
    require_file(path, "ONNX model", EXPORT_HINT)
    onnx = import_module("onnx")
    decode_error = import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (decode_error, OSError, ValueError) as error:
        raise UserError(f"{path} is not an ONNX file", seen=error, hint=EXPORT_HINT) from error
    tensors = _messages_of(model, onnx.TensorProto)
    weights = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if weights:  # a digest of this file would say nothing of them
        places = {e.value for w in weights for e in w.external_data if e.key == "location"}
        raise UserError(
            f"{path} keeps its weights in another file",
            seen=", ".join(sorted(places)),
            expected="one file with the weights inside",
            hint=EXPORT_HINT,
        )
    _gather_weights(model.graph)
    return model


def _gather_weights(graph: Any) -> None:
    """Make weights that another tool keeps as nodes initializers: all here look for them there."""
    layers = (node for node in graph.node if node.op_type in ("Conv", "ConvTranspose"))
    names = {name for node in layers for name in node.input[1:]}
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] in names]:
        if node.attribute[0].name == "value":
            graph.initializer.append(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _messages_of(message: Any, kind: type) -> Iterator[Any]:
    """All of one kind, wherever they stand: tensors also in attributes, subgraphs, functions."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            inner = [value] if hasattr(value, "ListFields") else value
            for each in inner:
                yield from _messages_of(each, kind)


def metadata_from_onnx(path: Path) -> tuple[ModelSpec, str, str]:
    """(spec, precision, SHA-256 of the checkpoint). Raises UserError without our metadata."""
    model = read_onnx(path)
    entries = {p.key: p.value for p in model.metadata_props}
    if SPEC_KEY not in entries:
        raise UserError(
            f"{path} does not say how its images and masks are made",
            seen=f"metadata: {', '.join(entries) or 'none'}",
            expected=SPEC_KEY,
            hint=EXPORT_HINT,
        )
    spec, precision = ModelSpec.from_json(entries[SPEC_KEY]), entries.get(PRECISION_KEY, "fp32")
    _check_ends(path, model.graph, spec)
    _check_classes(path, model.graph, spec)
    _check_weights(path, model.graph, precision)
    return spec, precision, entries.get(SOURCE_KEY, "")


def require_runnable(path: Path, precision: str) -> None:
    """Raise UserError for a graph that no runtime runs on a CPU, only a plan made of it."""
    if precision == "bf16":
        raise UserError(
            f"{path} is a graph in bf16, of which plans are made",
            seen="ONNX Runtime and OpenVINO run no bf16 graph on a CPU",
            expected="a graph in fp32 or fp16, or a checkpoint",
            hint=EXPORT_HINT,
        )


def _check_ends(path: Path, graph: Any, spec: ModelSpec) -> None:
    """Raise UserError where our metadata lie on a graph that is not ours."""
    weights = {value.name for value in graph.initializer}
    inputs = {value.name: _form(value) for value in graph.input if value.name not in weights}
    outputs = {value.name: _form(value) for value in graph.output}
    rank = 4 if spec.planes else 3
    wanted = (
        {"image": (_UINT8, (0, 0, 0, spec.channels)), "size_like": (_UINT8, (0, 0))},
        {spec.result: (_UINT8, rank)},
    )
    if (inputs, {name: (kind, len(sides)) for name, (kind, sides) in outputs.items()}) != wanted:
        raise UserError(
            f"{path} has the metadata of our graphs and is none",
            seen=f"inputs {_text(inputs)}; outputs {_text(outputs)}",
            expected=f"inputs image (?×?×?×{spec.channels}), size_like (?×?); "
            f"output {spec.result}, all uint8, of any size",
            hint=EXPORT_HINT,
        )


def _check_classes(path: Path, graph: Any, spec: ModelSpec) -> None:
    """Raise UserError where the metadata were edited: its masks would hold values of no class."""
    kernels = (tensor for tensor in graph.initializer if tensor.name == _LAST_KERNEL)
    seen = next((kernel.dims[0] for kernel in kernels), spec.classes)
    if seen != spec.classes:
        raise UserError(
            f"{path} says that it has {spec.classes} classes and is a network of {seen}",
            seen=f"{SPEC_KEY} with {spec.classes}, {_LAST_KERNEL} with {seen}",
            expected="the metadata as they were exported",
            hint=EXPORT_HINT,
        )


def _check_weights(path: Path, graph: Any, precision: str) -> None:
    """Raise UserError where another tool has changed the precision; our metadata stay behind."""
    if precision not in _WEIGHT_TYPES:
        return
    type_name = import_module("onnx").TensorProto.DataType.Name
    kernels = (tensor for tensor in graph.initializer if len(tensor.dims) == 4)
    others = {type_name(kernel.data_type) for kernel in kernels} - _WEIGHT_TYPES[precision]
    if others:
        raise UserError(
            f"{path} says that it is in {precision} and is not",
            seen=f"convolutions with weights of {', '.join(sorted(others)).lower()}",
            expected="the graph that was exported; unetrt writes other precisions itself",
            hint="unetrt export CHECKPOINT -o model.onnx --precision fp16, or unetrt build with "
            "--precision fp16 or int8",
        )


def _form(value: Any) -> tuple[int, tuple[int, ...]]:
    """(element type, sides), 0 for a side of any length."""
    kind = value.type.tensor_type
    return kind.elem_type, tuple(side.dim_value for side in kind.shape.dim)


def _text(ends: dict[str, tuple[int, tuple[int, ...]]]) -> str:
    type_name = import_module("onnx").TensorProto.DataType.Name
    told = []
    for name, (kind, sides) in ends.items():
        other = "" if kind == _UINT8 else f" {type_name(kind).lower()}"
        told.append(f"{name}{other} ({'×'.join(str(side or '?') for side in sides)})")
    return ", ".join(told)
