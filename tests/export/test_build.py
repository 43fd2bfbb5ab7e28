"""From a model to an engine directory: whole, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.contract.spec import SpecOverrides
from unetrt.contract.types import U8
from unetrt.engine.manifest import GATE, GOLDEN, MANIFEST, Manifest, read_golden, read_manifest
from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import supports_bf16
from unetrt.export.build import BuildOptions, Built, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.inspect import describe_model
from unetrt.export.profiles import SizeRange
from unetrt.export.source import gate_inputs, read_source
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint

Export = Callable[..., Path]
FILES = {MANIFEST, GOLDEN, GATE, "model.onnx"}
RANGE = SizeRange((64, 64), (64, 64), (64, 64))
FP32 = {"backend": "onnxruntime", "precision": "fp32"}


def options(gate: GateOptions | None = None, **changes: Any) -> BuildOptions:
    return BuildOptions(**{**FP32, **changes}, gate=gate or GateOptions())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def golden_checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_file: Export,
    steel: Callable[..., U8],
) -> Path:
    """A checkpoint with golden images, as training leaves it."""
    checkpoint = read_checkpoint(checkpoint_file())
    checkpoint.golden = [(steel(i, 40 + i, 56), (40 + i, 56)) for i in range(4)]
    path = tmp_path_factory.mktemp("golden") / "golden.pth"
    write_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def golden_build(
    golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Built]:
    """An engine built from that checkpoint with nothing asked but the precision."""
    path = tmp_path_factory.mktemp("golden-build") / "new" / "engine"
    return path, build_engine(golden_checkpoint, path, BuildOptions(precision="fp32"))


class TestFromCheckpoint:
    def test_what_is_published(
        self, golden_build: tuple[Path, Built], golden_checkpoint: Path
    ) -> None:
        path, built = golden_build
        manifest = read_manifest(path)
        assert manifest == built.manifest
        assert {p.name for p in path.iterdir()} == FILES
        assert [p.name for p in path.parent.iterdir()] == ["engine"]
        assert manifest.files == {n: sha256_from_file(path / n) for n in FILES - {MANIFEST}}
        digest = sha256_from_file(golden_checkpoint)
        assert manifest.source == {"name": "golden.pth", "sha256": digest}
        assert manifest.spec == read_checkpoint(golden_checkpoint).spec
        assert manifest.made_by.startswith("unetrt")
        assert manifest.backend_version

    def test_auto_says_what_it_chose(self, golden_build: tuple[Path, Built]) -> None:
        _, built = golden_build
        assert built.manifest.backend == "openvino"
        assert built.why.startswith("openvino: ")

    def test_the_verdict_is_in_both_files(self, golden_build: tuple[Path, Built]) -> None:
        path, built = golden_build
        gate = json.loads((path / GATE).read_text())
        assert gate == json.loads(json.dumps(built.gate.to_dict()))
        assert (gate["verdict"], gate["inputs"], gate["images"]) == ("passed", "golden", 4)
        assert gate["agreement"] >= 0.9999
        assert built.manifest.gate == {
            "verdict": "passed",
            "inputs": "golden",
            "agreement": gate["agreement"],
            "min_agreement": 0.9999,
            "golden_agreement": gate["agreement"],
        }

    def test_the_manifest_survives_json(self, golden_build: tuple[Path, Built]) -> None:
        path, built = golden_build
        text = (path / MANIFEST).read_text()
        assert Manifest.from_dict(json.loads(text)) == built.manifest
        assert Manifest.from_dict(json.loads(text)).to_json() == text

    def test_golden_masks_are_those_of_pytorch(
        self, golden_build: tuple[Path, Built], golden_checkpoint: Path
    ) -> None:
        cases = read_golden(golden_build[0] / GOLDEN)
        inputs = read_checkpoint(golden_checkpoint).golden
        assert len(cases) == 4
        with open_engine(golden_checkpoint, device="cpu") as torch_engine:
            for case, (image, size) in zip(cases, inputs, strict=True):
                assert np.array_equal(case.image, image)
                assert np.array_equal(case.mask, torch_engine.run(image, size))

    def test_it_opens_and_runs(
        self, golden_build: tuple[Path, Built], steel: Callable[..., U8]
    ) -> None:
        with open_engine(golden_build[0]) as engine:
            assert engine.backend == "openvino"
            assert engine.run(steel(0, 30, 40), (60, 80)).shape == (60, 80)

    def test_inspect_tells_it_all(self, golden_build: tuple[Path, Built]) -> None:
        found = describe_model(golden_build[0])
        assert (found["kind"], found["files_verified"]) == ("engine", True)
        assert found["gate"]["verdict"] == "passed"
        json.dumps(found)


class TestFromOnnx:
    @pytest.mark.parametrize(
        ("backend", "precision"),
        [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")],
    )
    def test_each_backend(
        self, exported: Export, tmp_path: Path, backend: str, precision: str
    ) -> None:
        if precision == "bf16" and not supports_bf16():
            pytest.skip("this processor has no bfloat16")
        # An untrained net has thin margins.
        gate = GateOptions(min_agreement=0.9)
        asked = options(gate, backend=backend, precision=precision)
        built = build_engine(exported(), tmp_path / "engine", asked)
        assert built.why == "as asked"
        assert built.gate.verdict == "passed"
        assert built.gate.inputs == "synthetic"
        assert built.gate.ran_on == f"{backend} {precision} on cpu"
        assert (tmp_path / "engine" / "model.onnx").read_bytes() == exported().read_bytes()
        with open_engine(tmp_path / "engine") as engine:
            assert (engine.backend, engine.precision) == (backend, precision)

    def test_an_fp16_graph(self, exported: Export, tmp_path: Path) -> None:
        built = build_engine(exported("fp16"), tmp_path / "engine", options(precision="fp16"))
        assert (built.manifest.precision, built.gate.min_agreement) == ("fp16", 0.9995)
        open_engine(tmp_path / "engine").close()

    def test_a_graph_in_another_precision(self, exported: Export, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="graph in fp32") as caught:
            build_engine(exported(), tmp_path / "engine", options(precision="fp16"))
        assert "--precision fp16" in str(caught.value.hint)
        assert not list(tmp_path.iterdir())

    def test_auto_takes_the_precision_of_the_graph(self, exported: Export, tmp_path: Path) -> None:
        asked = options(GateOptions(min_agreement=0.9), precision="auto", backend="onnxruntime")
        built = build_engine(exported("fp16"), tmp_path / "a", asked)
        assert built.manifest.precision == "fp16"
        assert built.why == "as asked; fp16, as the graph of default-fp16.onnx is"
        assert built.gate.reference == "the ONNX file's own graph"
        anything = replace(asked, backend="auto")
        built = build_engine(exported("fp16"), tmp_path / "b", anything)
        assert (built.manifest.backend, built.manifest.precision) == ("onnxruntime", "fp16")

    def test_a_backend_without_the_graphs_precision(self, exported: Export, tmp_path: Path) -> None:
        asked = options(backend="openvino", precision="auto")
        with pytest.raises(UserError, match="not built from a graph in fp16") as caught:
            build_engine(exported("fp16"), tmp_path / "engine", asked)
        assert "--backend onnxruntime --precision fp16" in str(caught.value.hint)

    def test_another_scale(self, exported: Export, tmp_path: Path) -> None:
        asked = options(overrides=SpecOverrides(scale=0.25))
        with pytest.raises(UserError, match="another scale"):
            build_engine(exported(), tmp_path / "engine", asked)
        assert not list(tmp_path.iterdir())


class TestRequests:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"precision": "int4"}, "not built in int4"),
            ({"precision": "bf16"}, "not built in bf16"),
            ({"backend": "openvino", "precision": "fp16"}, "not built in fp16"),
            ({"backend": "torch", "precision": "fp32"}, "torch is not built in fp32"),
            ({"backend": "none"}, "no engine directory is built for none"),
        ],
    )
    def test_pairs_that_cannot_be_built(
        self, exported: Export, tmp_path: Path, changes: dict[str, str], message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught:
            build_engine(exported(), tmp_path / "engine", options(**changes))
        assert caught.value.expected
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["none.pth", "none.onnx"])
    def test_no_model(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UserError, match="no such file"):
            build_engine(tmp_path / name, tmp_path / "engine", options())
        assert not list(tmp_path.iterdir())

    def test_a_folder_is_no_source(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="is a folder"):
            build_engine(tmp_path, tmp_path / "engine", options())

    @pytest.mark.parametrize("names", [("notes.txt",), (MANIFEST, "notes.txt"), ("model.onnx",)])
    def test_other_files_are_never_replaced(
        self, exported: Export, tmp_path: Path, names: tuple[str, ...]
    ) -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("mine")
        with pytest.raises(UserError, match="holds other files") as caught:
            build_engine(exported(), folder, options())
        assert names[-1] in str(caught.value.seen)
        assert snapshot(tmp_path) == {f"mine/{name}": b"mine" for name in names}

    @pytest.mark.parametrize("text", ["{}", "[]", "mine", '{"format": "other-1"}'])
    def test_a_manifest_that_is_not_ours(self, exported: Export, tmp_path: Path, text: str) -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / MANIFEST).write_text(text)
        with pytest.raises(UserError, match="holds other files"):
            build_engine(exported(), folder, options())
        assert snapshot(tmp_path) == {f"mine/{MANIFEST}": text.encode()}

    @pytest.mark.parametrize("kind", ["folder", "link"])
    def test_what_has_our_name_and_is_no_file(
        self, exported: Export, golden_build: tuple[Path, Built], tmp_path: Path, kind: str
    ) -> None:
        engine = shutil.copytree(golden_build[0], tmp_path / "engine")
        place = engine / "model.bin"
        if kind == "link":
            place.symlink_to(engine / "model.onnx")
        else:
            place.mkdir()
            (place / "notes.txt").write_text("mine")
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match="holds other files") as caught:
            build_engine(exported(), engine, options())
        assert caught.value.seen == "model.bin"
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("name", ["link", "link/below"])
    def test_a_link_that_leads_nowhere(self, exported: Export, tmp_path: Path, name: str) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "none")
        with pytest.raises(UserError, match="leads nowhere"):
            build_engine(exported(), tmp_path / name, options())
        assert [p.name for p in tmp_path.iterdir()] == ["link"]

    def test_a_link_is_followed(self, exported: Export, tmp_path: Path) -> None:
        (tmp_path / "engine").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "engine")
        build_engine(exported(), tmp_path / "link", options())
        assert (tmp_path / "link").is_symlink()
        assert {p.name for p in (tmp_path / "engine").iterdir()} == FILES

    @pytest.mark.parametrize(
        ("typed", "plan", "named"),
        [
            (("--batch",), PlanOptions(), "--batch"),
            ((), PlanOptions(batch=(1, 1, 2)), "--batch"),
            (("--sizes-from",), PlanOptions(ranges=(RANGE,)), "--sizes-from"),
            (("--size", "--sizes-from"), PlanOptions(ranges=(RANGE,)), "--size, --sizes-from"),
            (("--sizes-from",), PlanOptions(ranges=(RANGE,), workspace=1), "--sizes-from, --w"),
        ],
    )
    def test_flags_of_a_plan(
        self,
        exported: Export,
        tmp_path: Path,
        typed: tuple[str, ...],
        plan: PlanOptions,
        named: str,
    ) -> None:
        with pytest.raises(UserError, match=f"the onnxruntime backend has no {named}"):
            build_engine(exported(), tmp_path / "engine", options(typed=typed, plan=plan))

    def test_no_blocks_of_what_is_in_fp32_anyway(self, exported: Export, tmp_path: Path) -> None:
        asked = options(typed=("--fp32-blocks",), fp32_blocks=())
        with pytest.raises(UserError, match="keeps blocks of an fp16 engine"):
            build_engine(exported(), tmp_path / "engine", asked)

    @pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
    def test_a_file_in_the_way(self, exported: Export, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="is a file"):
            build_engine(exported(), tmp_path / name, options())
        assert snapshot(tmp_path) == {"file": b"mine"}

    @pytest.mark.parametrize("name", [".", "/", ".."])
    def test_a_folder_without_a_name(
        self, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError):
            build_engine(exported(), Path(name), options())
        assert not list(tmp_path.iterdir())


class TestInputs:
    def test_folder_first_then_golden_then_drawn(
        self,
        exported: Export,
        golden_checkpoint: Path,
        checkpoint_file: Export,
        pictures: tuple[Path, Path],
    ) -> None:
        assert gate_inputs(read_source(golden_checkpoint), pictures[0])[1] == "images"
        assert gate_inputs(read_source(golden_checkpoint), None)[1] == "golden"
        for path in (checkpoint_file(), exported()):
            inputs, kind = gate_inputs(read_source(path), None)
            assert (kind, len(inputs)) == ("synthetic", 4)

    def test_an_empty_folder(self, exported: Export, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        with pytest.raises(UserError, match="no images"):
            build_engine(
                exported(), tmp_path / "engine", options(GateOptions(images=tmp_path / "none"))
            )
        assert [p.name for p in tmp_path.iterdir()] == ["none"]


@pytest.mark.slow
def test_a_trained_net_passes_every_gate(trained: Path, tmp_path: Path) -> None:
    for backend, precision in (
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    ):
        if precision == "bf16" and not supports_bf16():
            continue
        built = build_engine(
            trained, tmp_path / "engine", options(backend=backend, precision=precision)
        )
        assert built.gate.verdict == "passed", built.gate
        assert built.gate.inputs == "golden"
