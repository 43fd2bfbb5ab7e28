"""Real plans by the real parser and builder, on a machine without a GPU too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unetrt.contract.errors import GateError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import read_manifest
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.open import open_engine
from unetrt.engine.tensorrt_backend import cuda_devices
from unetrt.engine.tensorrt_flavour import check, import_flavour, make_logger, shared_logger
from unetrt.export import modelfile, tensorrt_build
from unetrt.export.build import BuildOptions, Built, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.onnx_export import folded_masknet, onnx_from_checkpoint
from unetrt.export.profiles import profile_shapes, range_of_sizes
from unetrt.export.tensorrt_build import (
    RTX_TARGETS,
    Plan,
    PlanOptions,
    plan_from_onnx,
)
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")

Export = Callable[..., Path]
RTX = "tensorrt-rtx"
PLAN = PlanOptions(batch=(1, 2, 4), sizes=((64, 80), (48, 96)))


def plan_of(path: Path, options: PlanOptions = PLAN) -> Plan:
    return plan_from_onnx(RTX, path, metadata_from_onnx(path)[0], options, 0)


@pytest.fixture(scope="module")
def half_plan(exported: Export) -> Plan:
    return plan_of(exported("fp16"))


@pytest.fixture(scope="module")
def built(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    path = tmp_path_factory.mktemp("rtx") / "engine"
    options = BuildOptions(backend=RTX, plan=PLAN)
    return path, build_engine(exported("fp16"), path, options)


class TestPlan:
    def test_it_is_an_fp16_plan(self, half_plan: Plan) -> None:
        assert len(half_plan.data) > 100_000
        assert half_plan.layers["half"] > 40
        assert half_plan.layers.get("float", 0) <= 3
        assert half_plan.version == import_flavour(RTX).__version__

    def test_an_fp32_graph_gives_an_fp32_plan(self, exported: Export) -> None:
        plan = plan_of(exported())
        assert "half" not in plan.layers
        assert plan.layers["float"] > 40

    def test_all_of_its_arithmetic_is_fp16(self, half_plan: Plan) -> None:
        assert half_plan.shares["flops"] == {"fp16": 1.0}
        assert half_plan.shares["layers"]["fp16"] > 0.9

    def test_a_convolution_that_stays_in_fp32_is_refused(self, exported: Export) -> None:
        asked = replace(PLAN, precision="fp16")
        with pytest.raises(UserError, match="in another precision") as caught:
            plan_of(exported(), asked)
        assert str(caught.value.seen).startswith("23 of 23: node_conv2d")
        with pytest.raises(UserError, match="in another precision") as caught:
            plan_of(exported(), replace(asked, fp32_blocks=("inc",)))
        assert caught.value.expected == "at most 2"

    def test_only_the_blocks_that_were_named_may_stay_in_fp32(
        self, checkpoint_file: Export, tmp_path: Path
    ) -> None:
        path = tmp_path / "model.onnx"
        onnx_from_checkpoint(read_checkpoint(checkpoint_file()), path, "fp16", "", ("up2",))
        plan = plan_of(path, replace(PLAN, precision="fp16", fp32_blocks=("up2",)))
        assert 0 < plan.shares["flops"]["fp32"] < 0.5
        with pytest.raises(UserError, match="in another precision"):
            plan_of(path, replace(PLAN, precision="fp16", fp32_blocks=("outc",)))

    def test_the_profile_spans_all_sizes(self, half_plan: Plan) -> None:
        assert half_plan.profiles == [
            {
                "image": [[1, 48, 80, 1], [2, 64, 80, 1], [4, 64, 96, 1]],
                "size_like": [[48, 80], [64, 80], [64, 96]],
            }
        ]

    def test_without_a_gpu_it_is_for_every_target(self, half_plan: Plan) -> None:
        assert half_plan.targets == list(RTX_TARGETS)

    def test_targets_that_were_asked(self, exported: Export) -> None:
        plan = plan_of(exported("fp16"), PlanOptions(sizes=((64, 64),), targets=("sm89", "sm120")))
        assert plan.targets == ["sm89", "sm120"]

    @pytest.mark.parametrize("target", ["sm90x", "sm10", "89", "", "current", "SM89"])
    def test_targets_that_are_none(self, exported: Export, target: str) -> None:
        with pytest.raises(UserError, match="no such target") as caught:
            plan_of(exported("fp16"), PlanOptions(sizes=((64, 64),), targets=("sm89", target)))
        assert caught.value.seen == [target]
        assert "sm120" in str(caught.value.expected)

    @pytest.mark.parametrize("changes", [{"batch": (1, 1, 10**20)}, {"sizes": ((10**20, 1),)}])
    def test_more_than_tensorrt_counts(self, exported: Export, changes: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="as many or as large") as caught:
            plan_of(exported("fp16"), replace(PLAN, **changes))
        assert str(10**20) in str(caught.value.seen)
        assert "--batch" in str(caught.value.hint)

    def test_a_plan_for_the_gpu_of_this_machine_names_it(
        self, exported: Export, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stand-ins: TensorRT-RTX is told of a GPU, and builds for the one that it is given."""
        gpu = {"name": "NVIDIA L4", "capability": "sm89", "driver": "13.0"}
        monkeypatch.setattr(tensorrt_build, "gpu_of_machine", lambda: gpu)
        monkeypatch.setattr(tensorrt_build, "_set_targets", lambda *_: [])
        monkeypatch.setattr(tensorrt_build, "build_serialized", lambda *_: b"plan")
        path = exported("fp16")
        plan = plan_from_onnx(RTX, path, metadata_from_onnx(path)[0], PLAN, 1)
        assert (plan.gpu, plan.targets) == (gpu, ["sm89"])

    @pytest.mark.parametrize(
        ("here", "precision", "expected"),
        [
            ("sm75", "fp16", ["sm75"]),
            ("sm89", "bf16", ["sm89"]),
            ("sm90", "fp16", []),
            ("", "fp16", []),
            ("sm75", "bf16", None),
        ],
    )
    def test_the_gpu_of_this_machine_is_a_target_as_others_are(
        self, here: str, precision: str, expected: list[str] | None
    ) -> None:
        """Unset, the configuration's own targets would be built for, and not this GPU."""
        trt = import_flavour(RTX)
        logger = shared_logger(trt)
        builder = trt.Builder(logger)
        config = builder.create_builder_config()
        rest = (trt, config, logger, PlanOptions(precision=precision), 1, here)
        if expected is None:
            with pytest.raises(UserError, match="do not compute in bf16") as caught:
                tensorrt_build._set_targets(*rest)
            assert "without these targets" not in str(caught.value.hint)
            return
        before = config.num_compute_capabilities
        assert tensorrt_build._set_targets(*rest) == expected
        assert config.num_compute_capabilities == (1 if expected else before)
        if expected:
            assert config.get_compute_capability(0).name == here.upper()

    def test_a_plan_for_other_gpus_does_not_name_this_one(self, half_plan: Plan) -> None:
        assert half_plan.gpu == {}

    def test_a_graph_it_cannot_parse(self, exported: Export, tmp_path: Path) -> None:
        model = onnx.load(str(exported("fp16")))
        next(n for n in model.graph.node if n.op_type == "Conv").op_type = "Convolute"
        path = tmp_path / "strange.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="cannot parse") as caught:
            plan_of(path)
        assert "Plugin not found" in str(caught.value.seen)
        assert str(tmp_path) not in str(caught.value), "a build's graph lies in a temporary folder"

    def test_bytes_it_cannot_parse(self, tmp_path: Path) -> None:
        path = tmp_path / "text.onnx"
        path.write_text("no graph at all")
        with pytest.raises(UserError, match="cannot parse") as caught:
            plan_from_onnx(RTX, path, ModelSpec(), PLAN, 0)
        assert len(str(caught.value.seen)) > 10

    def test_a_failure_keeps_no_builder_alive(self, exported: Export) -> None:
        """Freed by the garbage collector while TensorRT logs, it would lock the process up."""
        trt = import_flavour(RTX)
        with pytest.raises(UserError) as caught:
            plan_of(exported("fp16"), PlanOptions(sizes=((64, 64),), targets=("none",)))
        kept = [v for entry in caught.traceback for v in entry.frame.f_locals.values()]
        foreign = (trt.Builder, trt.INetworkDefinition, trt.IBuilderConfig, trt.OnnxParser)
        assert not [value for value in kept if isinstance(value, foreign)]

    def test_the_smallest_images(self, exported: Export) -> None:
        """A plan, or TensorRT's own words: where it refuses, another backend runs them."""
        failures: list[UserError] = []
        try:
            plan = plan_of(exported("fp16"), PlanOptions(sizes=((1, 1),)))
            assert plan.profiles[0]["size_like"] == [[1, 1]] * 3
        except UserError as error:
            failures.append(error)
        for failure in failures:
            assert "TensorRT failed to build the plan" in failure.message
            assert "TensorRT said nothing" not in str(failure.seen)
            assert "--backend openvino" in str(failure.hint)


def test_profile_shapes_are_those_of_the_network_at_its_scale() -> None:
    spec = ModelSpec(channels=3, scale=0.5)
    shapes = profile_shapes(spec, (1, 4, 8), range_of_sizes(((101, 203), (640, 100))))
    assert shapes == {
        "image": ((1, 50, 50, 3), (4, 50, 101, 3), (8, 320, 101, 3)),
        "size_like": ((101, 100), (101, 203), (640, 203)),
    }


class TestCheck:
    def test_what_failed_is_said_in_its_words(self) -> None:
        trt = import_flavour(RTX)
        logger = make_logger(trt, keep=2)
        for text in ("first", "second", "third"):
            logger.log(trt.ILogger.ERROR, text)
        logger.log(trt.ILogger.INFO, "chatter")
        for failure in (None, False):
            with pytest.raises(UserError, match="failed to build") as caught:
                check(failure, "build it", logger, "try again")
            assert (caught.value.seen, caught.value.hint) == ("second; third", "try again")

    def test_a_process_has_one_logger(self) -> None:
        trt = import_flavour(RTX)
        shared_logger(trt).log(trt.ILogger.ERROR, "of an earlier build")
        assert shared_logger(trt) is shared_logger(trt)
        assert shared_logger(trt).messages == []

    @pytest.mark.parametrize("result", [0, "", [], 7])
    def test_all_else_passes(self, result: Any) -> None:
        assert check(result, "x", make_logger(import_flavour(RTX))) is result


class TestDirectory:
    def test_what_is_published(self, built: tuple[Path, Built]) -> None:
        path, _ = built
        manifest = read_manifest(path)
        assert manifest.model == "model.plan"
        assert set(manifest.files) == {"gate.json", "golden.npz", "model.onnx", "model.plan"}
        assert (manifest.backend, manifest.precision) == (RTX, "fp16")
        assert manifest.backend_version == import_flavour(RTX).__version__
        assert manifest.profiles[0]["image"][0] == [1, 48, 80, 1]
        assert manifest.target["layers"]["half"] > 40
        assert manifest.precisions["flops"] == {"fp16": 1.0}
        assert manifest.target["compute_capabilities"] == list(RTX_TARGETS)

    @pytest.mark.skipif(cuda_devices() > 0, reason="a CUDA device is there")
    def test_the_verdict_is_graph_only(self, built: tuple[Path, Built]) -> None:
        path, result = built
        assert result.gate.verdict == "graph-only"
        assert result.gate.ran_on == "onnxruntime fp16 on cpu"
        assert read_manifest(path).gate["verdict"] == "graph-only"

    @pytest.mark.skipif(cuda_devices() > 0, reason="a CUDA device is there")
    def test_opening_it_without_a_gpu(self, built: tuple[Path, Built]) -> None:
        with pytest.raises(UserError, match="tensorrt-rtx plan") as caught:
            open_engine(built[0])
        assert "0 CUDA devices" in str(caught.value.seen)
        assert "unetrt build" in str(caught.value.hint)

    def test_a_changed_plan_is_refused_unread(self, built: tuple[Path, Built]) -> None:
        path = built[0] / "model.plan"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        try:
            with pytest.raises(UserError, match="not the engine that was built") as caught:
                open_engine(built[0])
        finally:
            path.write_bytes(data)
        assert "model.plan" in str(caught.value.seen)

    def test_sizes_default_to_those_of_the_golden_images(
        self, exported: Export, tmp_path: Path
    ) -> None:
        built = build_engine(exported("fp16"), tmp_path / "engine", BuildOptions(backend=RTX))
        assert built.manifest.profiles[0]["size_like"] == [[256, 320]] * 3

    def test_a_sabotaged_graph_fails(
        self,
        exported: Export,
        tmp_path: Path,
        reweighted: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write = modelfile._write_floats

        def write_negated(path: Path, *rest: Any) -> None:
            write(path, *rest)
            reweighted(path, path, "net.outc.conv.weight", np.negative)

        monkeypatch.setattr(modelfile, "_write_floats", write_negated)
        with pytest.raises(GateError) as caught:
            build_engine(
                exported("fp16"), tmp_path / "engine", BuildOptions(backend=RTX, plan=PLAN)
            )
        assert caught.value.status == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_a_net_that_overflows_in_fp16_fails(
        self, checkpoint_file: Export, tmp_path: Path
    ) -> None:
        """ONNX Runtime, which stands in for the plan, computes in fp32 and would not see it."""
        checkpoint = read_checkpoint(checkpoint_file())
        layer = "up4.conv.double_conv.3"
        weight = folded_masknet(checkpoint).state_dict()[f"net.{layer}.weight"].abs().max()
        for name, factor in (
            (f"{layer}.weight", 60000 / float(weight)),
            ("up4.conv.double_conv.4.running_mean", 0.0),
        ):
            checkpoint.state[name] = checkpoint.state[name] * factor
        source = tmp_path / "large.pth"
        write_checkpoint(source, checkpoint)
        gate = GateOptions(min_agreement=0.0)
        options = BuildOptions(backend=RTX, plan=PLAN, gate=gate, fp32_blocks=())
        with pytest.raises(GateError, match="not finite"):
            build_engine(source, tmp_path / "engine", options)
        assert [p.name for p in tmp_path.iterdir()] == ["large.pth"]
        fp32 = BuildOptions(backend="openvino", precision="fp32")
        assert build_engine(source, tmp_path / "engine", fp32).gate.verdict == "passed"
