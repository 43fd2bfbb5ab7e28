"""Plans in bf16: their graph, what stands for it on a CPU, and the plan itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.engine.onnxfile import metadata_from_onnx, read_onnx
from unetrt.engine.onnxruntime_backend import CPU, session_from_onnx
from unetrt.engine.open import open_engine
from unetrt.export.bfloat16 import rounding_from_bf16
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.onnx_export import folded_masknet, onnx_from_checkpoint
from unetrt.export.refit import write_reweighted
from unetrt.export.source import read_source
from unetrt.export.tensorrt_build import PlanOptions, plan_from_onnx
from unetrt.training.checkpoint import read_checkpoint

RTX = "tensorrt-rtx"
PLAN = PlanOptions(batch=(1, 2, 2), sizes=((96, 96),), targets=("sm89",))


@pytest.fixture(scope="module")
def graph(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "model.onnx"
    onnx_from_checkpoint(read_checkpoint(trained), path, "bf16")
    return path


def kinds_of_weights(path: Path) -> dict[str, int]:
    return {w.name: w.data_type for w in read_onnx(path).graph.initializer}


def test_all_but_the_transposed_and_the_last_convolution_is_in_bf16(graph: Path) -> None:
    weights = {n: k for n, k in kinds_of_weights(graph).items() if n.endswith(".weight")}
    single = {name for name, kind in weights.items() if kind == onnx.TensorProto.FLOAT}
    assert single == {*(f"net.up{i}.up.weight" for i in range(1, 5)), "net.outc.conv.weight"}
    assert all(weights[n] == onnx.TensorProto.BFLOAT16 for n in set(weights) - single)
    assert metadata_from_onnx(graph)[1] == "bf16"


def test_what_runs_on_a_cpu_rounds_as_bf16_does(graph: Path, trained: Path) -> None:
    """As PyTorch's own bf16 does, in which a tie may fall the other way."""
    checkpoint = read_checkpoint(trained)
    session: Any = session_from_onnx(rounding_from_bf16(read_onnx(graph)).SerializeToString(), CPU)
    half, whole = folded_masknet(checkpoint, "bf16"), folded_masknet(checkpoint)
    shares = []
    for image, size in checkpoint.golden:
        like = torch.zeros(size, dtype=torch.uint8)
        with torch.inference_mode():
            ours, exact = (net(torch.tensor(image)[None], like).numpy() for net in (half, whole))
        feeds = {"image": image[None], "size_like": like.numpy()}
        found = session.run(None, feeds)[0]
        shares.append([(found == ours).mean(), (found == exact).mean()])
    near_bf16, near_fp32 = np.mean(shares, axis=0)
    assert near_bf16 >= 0.9995
    assert 0.99 <= near_fp32 < 1, "it rounds nothing"


def test_no_runtime_takes_the_graph_as_it_is(graph: Path) -> None:
    for use in (lambda: open_engine(graph), lambda: read_source(graph)):
        with pytest.raises(UserError, match="of which plans are made"):
            use()


def test_other_weights_are_rounded_too(graph: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained)
    twice = {n: 2 * w if n.startswith("outc") else w for n, w in checkpoint.state.items()}
    write_reweighted(graph, tmp_path / "m.onnx", replace(checkpoint, state=twice), "digest")
    assert kinds_of_weights(tmp_path / "m.onnx") == kinds_of_weights(graph)
    arrays = [
        {w.name: onnx.numpy_helper.to_array(w) for w in read_onnx(path).graph.initializer}
        for path in (graph, tmp_path / "m.onnx")
    ]
    last = "net.outc.conv.weight"
    np.testing.assert_array_equal(arrays[1][last], 2 * arrays[0][last])
    first = "net.inc.double_conv.0.weight"
    np.testing.assert_array_equal(arrays[1][first], arrays[0][first])


class TestPlan:
    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    def test_it_is_built_and_judged_by_what_rounds_as_it_does(
        self, trained: Path, tmp_path: Path
    ) -> None:
        options = BuildOptions(
            backend=RTX, precision="bf16", plan=PLAN, gate=GateOptions(min_class_iou=0.9)
        )
        built = build_engine(trained, tmp_path / "engine", options)
        assert built.gate.agreement < 1, "judged in fp32"
        assert built.gate.verdict == "graph-only"
        found = describe_model(tmp_path / "engine")
        assert found["precisions"]["flops"]["bf16"] > 0.8
        assert found["precisions"]["flops"]["fp32"] < 0.2
        assert {p.name for p in (tmp_path / "engine").iterdir()} == {
            *("engine.json", "gate.json", "golden.npz", "model.onnx", "model.plan")
        }

    def test_a_graph_in_fp32_is_no_bf16_plan(self, exported: Callable[..., Path]) -> None:
        path = exported()
        asked = replace(PLAN, precision="bf16")
        with pytest.raises(UserError, match="in another precision"):
            plan_from_onnx(RTX, path, metadata_from_onnx(path)[0], asked, 0)

    def test_gpus_that_lack_it_are_named_before_anything_is_built(
        self, trained: Path, tmp_path: Path
    ) -> None:
        plan = replace(PLAN, targets=("sm75", "sm89"))
        options = BuildOptions(backend=RTX, precision="bf16", plan=plan)
        with pytest.raises(UserError, match="do not compute in bf16") as caught:
            build_engine(trained, tmp_path / "engine", options)
        assert caught.value.seen == "sm75"
