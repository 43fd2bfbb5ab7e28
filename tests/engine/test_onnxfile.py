"""ONNX files of ours: what they say, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.onnxfile import PRECISION_KEY, SPEC_KEY, metadata_from_onnx
from unetrt.engine.open import open_engine
from unetrt.training.checkpoint import read_checkpoint

Export = Callable[..., Path]


@pytest.fixture
def edited(exported: Export, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """The exported graph after a change to it."""

    def edit(change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(str(exported()))
        change(model)
        path = tmp_path / "edited.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return edit


def test_the_metadata_say_what_was_exported(exported: Export, checkpoint_file: Export) -> None:
    spec, precision, _ = metadata_from_onnx(exported())
    assert spec == read_checkpoint(checkpoint_file()).spec
    assert precision == "fp32"


def test_onnx_of_someone_else(edited: Callable[..., Path]) -> None:
    path = edited(lambda model: model.ClearField("metadata_props"))
    with pytest.raises(UserError, match="does not say how") as caught:
        open_engine(path)
    assert caught.value.expected == SPEC_KEY
    assert "unetrt export" in str(caught.value.hint)


def test_weights_in_another_file(edited: Callable[..., Path]) -> None:
    def move_out(model: onnx.ModelProto) -> None:
        onnx.external_data_helper.convert_model_to_external_data(
            model, location="none.data", size_threshold=0
        )
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.ClearField("raw_data")

    with pytest.raises(UserError, match="its weights in another file") as caught:
        open_engine(edited(move_out))
    assert "none.data" in str(caught.value.seen)
    assert "unetrt export" in str(caught.value.hint)


@pytest.mark.parametrize("place", ["attribute", "subgraph", "function"])
def test_weights_of_a_node_in_another_file(edited: Callable[..., Path], place: str) -> None:
    """A digest of the file says nothing of them, wherever they stand."""

    def add(model: onnx.ModelProto) -> None:
        tensor = onnx.helper.make_tensor("far", onnx.TensorProto.FLOAT, [1], [0.0])
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="none.data")
        node = onnx.helper.make_node("Constant", [], ["far"], value=tensor)
        if place == "attribute":
            model.graph.node.append(node)
        elif place == "subgraph":
            inner = onnx.helper.make_graph([node], "inner", [], [])
            model.graph.node.append(onnx.helper.make_node("If", ["far"], ["x"], then_branch=inner))
        else:
            model.functions.append(onnx.helper.make_function("f", "f", [], ["far"], [node], []))

    with pytest.raises(UserError, match="its weights in another file") as caught:
        open_engine(edited(add))
    assert caught.value.seen == "none.data"


def test_our_metadata_on_the_graph_of_someone_else(edited: Callable[..., Path]) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "picture"
        for node in model.graph.node:
            node.input[:] = ["picture" if name == "image" else name for name in node.input]

    with pytest.raises(UserError, match="and is none") as caught:
        open_engine(edited(rename))
    assert "picture" in str(caught.value.seen)


def test_our_metadata_on_a_graph_of_floats(edited: Callable[..., Path]) -> None:
    def retype(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT

    with pytest.raises(UserError, match="and is none"):
        open_engine(edited(retype))


@pytest.mark.parametrize(
    ("end", "side", "length"), [(0, 0, 1), (0, 2, 100), (0, 3, 3), (1, 0, 200)]
)
def test_our_metadata_on_a_graph_of_one_size(
    edited: Callable[..., Path], end: int, side: int, length: int
) -> None:
    """Tools fix sides and keep the metadata; such a graph runs no other image."""

    def fix(model: onnx.ModelProto) -> None:
        shape = model.graph.input[end].type.tensor_type.shape
        shape.dim[side].ClearField("dim_param")
        shape.dim[side].dim_value = length

    with pytest.raises(UserError, match="and is none") as caught:
        open_engine(edited(fix))
    assert str(length) in str(caught.value.seen)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metadata_of_another_number_of_classes(edited: Callable[..., Path], classes: int) -> None:
    def rewrite(model: onnx.ModelProto) -> None:
        [entry] = [entry for entry in model.metadata_props if entry.key == SPEC_KEY]
        spec = ModelSpec.from_json(entry.value)
        names, values = tuple("abcde")[:classes], tuple(range(classes))
        changed = replace(spec, classes=classes, class_names=names, mask_values=values)
        entry.value = changed.to_json()

    with pytest.raises(UserError, match=f"has {classes} classes and is a network of 4"):
        open_engine(edited(rewrite))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_onnx_cut_short(exported: Export, tmp_path: Path, backend: str, share: float) -> None:
    data = exported().read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"cut\.onnx"):
        open_engine(path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_does_not_load(edited: Callable[..., Path], backend: str) -> None:
    def break_node(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.op_type == "Conv").op_type = "Convolute"

    with pytest.raises(UserError, match="cannot") as caught:
        open_engine(edited(break_node), backend)
    assert "Convolute" in str(caught.value.seen)


@pytest.mark.parametrize("text", ["", "[]", "{}}", '{"classes": 0}', '{"colour": 1}'])
def test_a_spec_that_is_none(edited: Callable[..., Path], text: str) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == SPEC_KEY).value = text

    with pytest.raises(UserError, match="spec"):
        open_engine(edited(spoil))


@pytest.mark.parametrize("as_nodes", [False, True])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_of_another_precision_than_it_says(
    edited: Callable[..., Path], backend: str, as_nodes: bool
) -> None:
    """As tools that turn a file into fp16 leave it, with our metadata."""

    def halve(model: onnx.ModelProto) -> None:
        weights = [w for w in model.graph.initializer if len(w.dims) == 4]
        for weight in weights:
            half = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(half, weight.name))
            if as_nodes:
                node = onnx.helper.make_node("Constant", [], [weight.name], value=weight)
                model.graph.node.insert(0, node)
                model.graph.initializer.remove(weight)

    with pytest.raises(UserError, match="says that it is in fp32 and is not") as caught:
        open_engine(edited(halve), backend)
    assert caught.value.seen == "convolutions with weights of float16"


def test_a_precision_that_openvino_does_not_know(edited: Callable[..., Path]) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == PRECISION_KEY).value = "fp7"

    with pytest.raises(UserError, match="no such precision"):
        open_engine(edited(spoil), "openvino")
