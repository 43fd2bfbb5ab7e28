"""Sizes of features against those that ONNX Runtime computes, and what lives at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from unetrt.export.memory import activation_bytes, features_of_graph, weight_bytes

Export = Callable[..., Path]


def computed(path: Path, image: tuple[int, ...], mask: tuple[int, int]) -> dict[str, np.ndarray]:
    """Every feature by its name, run without any fusion."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    values = {value.name: value for value in model.graph.value_info}
    names = [f.name for f in features_of_graph(onnx.load(path), image, mask) if f.name in values]
    model.graph.output.extend([values[name] for name in names])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"image": np.zeros(image, np.uint8), "size_like": np.zeros(mask, np.uint8)}
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize(
    ("precision", "net"),
    [
        ("fp32", {}),
        ("fp16", {}),
        pytest.param("fp32", {"bilinear": True, "classes": 2}, marks=pytest.mark.slow),
    ],
)
def test_features_have_their_sizes(
    exported: Export, net: dict[str, object], precision: str
) -> None:
    path = exported(precision, **net)
    image, mask = (2, 48, 64, net.get("channels", 1)), (96, 80)
    found = {f.name: f for f in features_of_graph(onnx.load(path), image, mask)}  # type: ignore[arg-type]
    real = computed(path, image, mask)  # type: ignore[arg-type]
    assert len(real) > 50
    for name, array in real.items():
        assert found[name].bytes == array.nbytes, name


def small_graph(tmp_path: Path) -> Path:
    """1×1 convolutions: a (4 channels) → b (8) → c (2) from b, then c joined with a."""
    kernels = {"k1": (4, 1), "k2": (8, 4), "k3": (2, 8)}
    weights = [
        numpy_helper.from_array(np.zeros((*shape, 1, 1), np.float32), name)
        for name, shape in kernels.items()
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "k2"], ["b"]),
        helper.make_node("Conv", ["b", "k3"], ["c"]),
        helper.make_node("Concat", ["c", "r"], ["d"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "h", "w", 1])
    end = helper.make_tensor_value_info("d", TensorProto.FLOAT, ["N", 6, "h", "w"])
    graph = helper.make_graph(nodes, "small", [image], [end], weights)
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_what_lives_at_once(tmp_path: Path) -> None:
    path = small_graph(tmp_path)
    pixels = 3 * 10 * 20
    # b and the skip r, whose memory is a's, while c is made; x, t and image are gone.
    assert activation_bytes(onnx.load(path), (3, 10, 20, 1), (10, 20)) == pixels * 4 * (4 + 8 + 2)
    assert weight_bytes(onnx.load(path)) == 4 * (4 + 32 + 16)


def test_half_the_precision_takes_less(exported: Export) -> None:
    shapes = (4, 64, 96, 1), (64, 96)
    whole, half = (activation_bytes(onnx.load(exported(p)), *shapes) for p in ("fp32", "fp16"))
    assert half < 0.75 * whole  # the end, in bytes and indices, is the same
    assert weight_bytes(onnx.load(exported("fp16"))) / weight_bytes(
        onnx.load(exported())
    ) == pytest.approx(0.5, rel=0.05)
