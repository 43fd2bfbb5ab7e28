"""int8: one Q/DQ graph for OpenVINO and ONNX Runtime, calibrated on real network inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.batches import check_any_batch
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.engine.manifest import read_manifest
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.open import open_engine
from unetrt.export import int8
from unetrt.export.build import BuildOptions, Built, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.int8 import (
    WITHOUT_VNNI,
    Calibration,
    calibration_inputs,
    int8_from_onnx,
    scheme_of,
)
from unetrt.export.layers import onnx_shares
from unetrt.export.source import load_inputs, read_source
from unetrt.export.tensorrt_build import PlanOptions, plan_from_onnx

Export = Callable[..., Path]
UNTRAINED = GateOptions(min_agreement=0.5)


@pytest.fixture(scope="session")
def quantised(
    exported: Export, pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    calibration = calibration_inputs(read_source(exported()), pictures[0], None)
    int8_from_onnx(exported(), path, calibration)
    return path


@pytest.fixture(scope="session", params=["openvino", "onnxruntime"])
def built(
    request: pytest.FixtureRequest,
    exported: Export,
    pictures: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Built]:
    path = tmp_path_factory.mktemp("int8-engine") / "engine"
    options = BuildOptions(
        backend=request.param, precision="int8", calibration=pictures[0], gate=UNTRAINED
    )
    return path, build_engine(exported(), path, options)


@pytest.fixture(scope="session")
def planned(
    exported: Export, pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An int8 engine directory of TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    path = tmp_path_factory.mktemp("int8-plan") / "engine"
    options = BuildOptions(
        backend="tensorrt-rtx",
        precision="int8",
        calibration=pictures[0],
        gate=GateOptions(images=pictures[0], min_agreement=0.5),
    )
    build_engine(exported(), path, options)
    return path


def largest_weight(path: Path) -> int:
    graph = onnx.load(str(path)).graph
    weights = (onnx.numpy_helper.to_array(w) for w in graph.initializer if w.data_type == 3)
    return max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim == 4)


def without_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.ClearField("name")


def with_weights_as_nodes(model: onnx.ModelProto) -> None:
    weights, nodes = list(model.graph.initializer), list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    constant = onnx.helper.make_node
    model.graph.node.extend(constant("Constant", [], [w.name], value=w) for w in weights)
    model.graph.node.extend(nodes)


def test_an_int8_mask_is_the_same_in_a_batch_of_any_number(built: tuple[Path, Built]) -> None:
    with open_engine(built[0]) as engine:
        assert engine.any_batch == (engine.backend == "openvino")
        if engine.any_batch:
            check_any_batch(engine)


class TestGraph:
    def test_inputs_outputs_and_spec_stay(self, quantised: Path, exported: Export) -> None:
        old, new = onnx.load(str(exported())), onnx.load(str(quantised))
        assert [v.SerializeToString() for v in new.graph.input] == [
            v.SerializeToString() for v in old.graph.input
        ]
        assert new.graph.output[0].type == old.graph.output[0].type
        assert metadata_from_onnx(quantised)[0] == metadata_from_onnx(exported())[0]
        assert metadata_from_onnx(quantised)[1] == "int8"
        assert new.producer_name == "unetrt"

    def test_every_convolution_but_the_last_is_int8(self, quantised: Path) -> None:
        nodes = onnx.load(str(quantised)).graph.node
        convolutions = [n for n in nodes if n.op_type in ("Conv", "ConvTranspose")]
        producers = {name: n.op_type for n in nodes for name in n.output}
        quantised_too = [
            all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
            for node in convolutions
        ]
        assert quantised_too == [True] * (len(convolutions) - 1) + [False]

    def test_what_comes_after_the_last_convolution_is_as_it_was(self, quantised: Path) -> None:
        names = [n.op_type for n in onnx.load(str(quantised)).graph.node]
        last = max(i for i, name in enumerate(names) if name == "Conv")
        assert not {"QuantizeLinear", "DequantizeLinear"} & set(names[last:])

    @pytest.mark.parametrize("change", [without_names, with_weights_as_nodes])
    def test_a_graph_that_another_tool_has_written_anew(
        self,
        exported: Export,
        pictures: tuple[Path, Path],
        quantised: Path,
        tmp_path: Path,
        change: Callable[[onnx.ModelProto], None],
    ) -> None:
        """It was published as int8 and computed in floats, or stopped the build."""
        model = onnx.load(str(exported()))
        change(model)
        edited, path = tmp_path / "edited.onnx", tmp_path / "int8.onnx"
        edited.write_bytes(model.SerializeToString())
        assert onnx_shares(edited) == onnx_shares(exported())
        int8_from_onnx(edited, path, calibration_inputs(read_source(edited), pictures[0], None))
        assert onnx_shares(path) == onnx_shares(quantised)
        assert largest_weight(path) == largest_weight(quantised)

    def test_it_is_smaller(self, quantised: Path, exported: Export) -> None:
        numbers = [
            sum(len(i.raw_data) for i in onnx.load(str(p)).graph.initializer)
            for p in (quantised, exported())
        ]
        assert numbers[0] < 0.35 * numbers[1]

    def test_the_ranges_are_those_of_the_images(
        self, exported: Export, tmp_path: Path, steel: Callable[..., U8], quantised: Path
    ) -> None:
        """Calibrated on black pictures, the first layers' ranges are narrower."""
        black: list[tuple[U8, tuple[int, int]]] = [(np.zeros((32, 32, 1), np.uint8), (32, 32))]
        spec = metadata_from_onnx(exported())[0]
        int8_from_onnx(exported(), tmp_path / "black.onnx", Calibration("golden", black, spec))
        assert (tmp_path / "black.onnx").read_bytes() != quantised.read_bytes()

    def test_the_last_layer_is_told_apart_in_the_shares(self, quantised: Path) -> None:
        shares = onnx_shares(quantised)
        assert shares["layers"] == {"fp32": round(1 / 23, 6), "int8": round(22 / 23, 6)}
        assert 0.9 < shares["flops"]["int8"] < 1
        assert sum(shares["flops"].values()) == pytest.approx(1)

    @pytest.mark.parametrize(
        ("backend", "flags", "narrow"),
        [
            ("onnxruntime", {"avx2"}, True),
            ("onnxruntime", {"avx2", "avx512f"}, True),
            ("onnxruntime", {"avx2", "avx_vnni"}, False),
            ("onnxruntime", set(), False),
            ("openvino", {"avx2"}, False),
            ("tensorrt", {"avx2"}, False),
        ],
    )
    def test_where_products_saturate_weights_have_7_bits(
        self, monkeypatch: pytest.MonkeyPatch, backend: str, flags: set[str], narrow: bool
    ) -> None:
        monkeypatch.setattr(int8, "cpu_flags", lambda: flags)
        assert scheme_of(backend).narrow is narrow

    def test_weights_of_7_bits(
        self, exported: Export, pictures: tuple[Path, Path], quantised: Path, tmp_path: Path
    ) -> None:
        calibration = calibration_inputs(read_source(exported()), pictures[0], None)
        int8_from_onnx(exported(), tmp_path / "m.onnx", calibration, WITHOUT_VNNI)
        assert [largest_weight(path) for path in (quantised, tmp_path / "m.onnx")] == [127, 64]

    def test_a_graph_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("text")
        with pytest.raises(UserError, match="not an ONNX file"):
            int8_from_onnx(
                tmp_path / "text.onnx", tmp_path / "o.onnx", Calibration("golden", [], ModelSpec())
            )

    def test_a_disk_that_is_full(
        self, exported: Export, pictures: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """It takes the graph, and half of the copy that the quantiser works on."""
        resource = pytest.importorskip("resource", reason="no limits of a process here")
        graph = tmp_path / "floats.onnx"
        graph.write_bytes(exported().read_bytes())
        calibration = calibration_inputs(read_source(exported()), pictures[0], None)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (graph.stat().st_size // 2, before[1]))
        try:
            with pytest.raises(UserError, match="cannot quantise") as caught:
                int8_from_onnx(graph, tmp_path / "m.onnx", calibration)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(caught.value.hint).startswith("df -h ")


class TestEngine:
    def test_the_directory_says_how_it_was_made(self, built: tuple[Path, Built]) -> None:
        path, result = built
        manifest = read_manifest(path)
        assert manifest.precision == "int8"
        assert manifest.calibration == {"inputs": "calibration", "images": 8}
        assert manifest.precisions["flops"]["int8"] > 0.9
        assert result.gate.ran_on == f"{manifest.backend} int8 on cpu"
        assert {p.name for p in path.iterdir()} == {*manifest.files, "engine.json"}
        assert describe_model(path)["calibration"] == manifest.calibration

    @pytest.mark.parametrize(
        ("batch", "shape"), [(1, (64, 80)), (3, (33, 21)), (2, (16, 128)), (1, (1, 1))]
    )
    def test_shapes_are_dynamic(
        self,
        built: tuple[Path, Built],
        exported: Export,
        steel: Callable[..., U8],
        batch: int,
        shape: tuple[int, int],
    ) -> None:
        images = np.stack([steel(i, *shape) for i in range(batch)])
        size = (2 * shape[0], 2 * shape[1])
        with open_engine(built[0]) as engine, open_engine(exported()) as reference:
            slot = engine.slot()
            slot.reserve(batch, shape)[:] = images
            slot.submit(batch, size)
            masks = slot.masks().copy()
            slot.close()
            assert masks.shape == (batch, *size)
            expected = np.stack([reference.run(image, size) for image in images])
            assert np.mean(masks == expected) > 0.7
            for image, mask in zip(images, masks, strict=True):
                assert np.array_equal(engine.run(image, size), mask)


def test_the_default_gate_is_that_of_int8(
    exported: Export, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    gate = GateOptions(images=pictures[0], force=True)
    options = BuildOptions(backend="onnxruntime", precision="int8", gate=gate)
    built = build_engine(exported(), tmp_path / "engine", options)
    assert built.gate.min_agreement == 0.99
    assert built.manifest.calibration == {"inputs": "images", "images": 8}


def test_calibration_without_int8(
    exported: Export, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    options = BuildOptions(backend="openvino", precision="fp32", calibration=pictures[0])
    with pytest.raises(UserError, match="ranges of int8"):
        build_engine(exported(), tmp_path / "engine", options)
    assert not list(tmp_path.iterdir())


class TestInputs:
    def test_the_folder_then_the_gate_then_drawn(
        self, exported: Export, pictures: tuple[Path, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        source = read_source(exported())
        assert calibration_inputs(source, pictures[0], None).kind == "calibration"
        assert calibration_inputs(source, None, pictures[0]).kind == "images"
        assert not caplog.records
        assert calibration_inputs(source, None, None).kind == "synthetic"
        assert "--calibration" in caplog.text

    def test_of_a_large_folder_every_nth(
        self, exported: Export, pictures: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(int8, "MAX_IMAGES", 3)
        found = calibration_inputs(read_source(exported()), pictures[0], None)
        whole = sorted(pictures[0].iterdir())
        assert found.inputs == whole[::3]
        assert found.to_dict() == {"inputs": "calibration", "images": 3}

    def test_images_of_several_sizes(
        self, exported: Export, pictures: tuple[Path, Path], tmp_path: Path, steel: Export
    ) -> None:
        spec = read_source(exported()).spec
        cases = [*load_inputs(sorted(pictures[0].iterdir())[:1], spec)]
        cases.append((steel(1, 33, 40), (66, 80)))  # type: ignore[arg-type]
        int8_from_onnx(exported(), tmp_path / "o.onnx", Calibration("golden", cases, spec))
        assert onnx_shares(tmp_path / "o.onnx")["layers"]["int8"] > 0.9


class TestPlan:
    """Explicit Q/DQ as TensorRT takes it, parsed and built by TensorRT-RTX without a GPU."""

    def test_ranges_are_symmetric(self, planned: Path) -> None:
        graph = onnx.load(str(planned / "model.onnx")).graph
        arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        nodes = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(nodes) > 40
        for node in nodes:
            zero = arrays[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()

    def test_weights_have_a_range_each_channel(self, planned: Path) -> None:
        graph = onnx.load(str(planned / "model.onnx")).graph
        arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        kernels = [
            n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays
        ]
        assert len(kernels) == 21
        for node in kernels:
            weights, scale = arrays[node.input[0]], arrays[node.input[1]]
            axis = next(a.i for a in node.attribute if a.name == "axis")
            assert weights.dtype == np.int8
            assert scale.shape == (weights.shape[axis],)
            assert axis == (1 if ".up.weight" in node.input[0] else 0)

    def test_all_but_the_ends_is_int8(self, planned: Path) -> None:
        manifest = read_manifest(planned)
        assert (manifest.model, manifest.precision) == ("model.plan", "int8")
        assert 0.9 < manifest.precisions["flops"]["int8"] < 1
        assert set(manifest.precisions["flops"]) == {"int8", "fp32"}
        assert manifest.calibration == {"inputs": "calibration", "images": 8}
        gate = describe_model(planned)["gate"]
        assert (gate["verdict"], gate["ran_on"]) == ("graph-only", "onnxruntime int8 on cpu")

    def test_a_graph_that_stayed_in_floats_is_refused(self, exported: Export) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        spec = metadata_from_onnx(exported())[0]
        options = PlanOptions(sizes=((64, 64),), precision="int8")
        with pytest.raises(UserError, match="a plan in int8 would compute") as caught:
            plan_from_onnx("tensorrt-rtx", exported(), spec, options, 0)
        assert str(caught.value.seen).startswith("21 of 21: ")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_trained_net_passes(trained: Path, tmp_path: Path, backend: str) -> None:
    built = build_engine(
        trained, tmp_path / "engine", BuildOptions(backend=backend, precision="int8")
    )
    assert (built.gate.verdict, built.gate.inputs) == ("passed", "golden")
    assert built.manifest.calibration["inputs"] == "golden"
