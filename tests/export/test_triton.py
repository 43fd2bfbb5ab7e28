"""A Triton model repository: config.pbtxt in Triton's schema, the engine's own bytes, whole."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

from unetrt.cli.main import main
from unetrt.cli.triton import MOST_BATCH, MOST_DELAY, MOST_INSTANCES
from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.contract.modules import pip_install
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import GOLDEN, MANIFEST, read_golden, read_manifest
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.profiles import SizeRange, profile_shapes
from unetrt.export.triton import write_repository
from unetrt.export.triton_config import TritonOptions

DTYPES = {schema.TYPE_UINT8: np.uint8, schema.TYPE_INT32: np.int32}
OPTIONS = TritonOptions()


@pytest.fixture(scope="module")
def ort(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Callable[..., Path]) -> Path:
    """An onnxruntime engine directory named `steel`."""
    directory = tmp_path_factory.mktemp("triton") / "steel"
    checkpoint = checkpoint_file(channels=3, classes=2, bilinear=True, scale=0.5)
    build_engine(checkpoint, directory, BuildOptions(backend="onnxruntime"))
    return directory


def variant(engine: Path, directory: Path, **changes: Any) -> Path:
    """A copy of an engine directory that states something else of itself."""
    shutil.copytree(engine, directory)
    manifest = replace(read_manifest(directory), **changes)
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return directory


def plan(engine: Path, directory: Path, batch: tuple[int, int, int] = (1, 4, 16)) -> Path:
    """As a TensorRT directory is: no TensorRT is needed to copy a plan."""
    shutil.copytree(engine, directory)
    (directory / "model.plan").write_bytes(b"plan" * 100)
    manifest = read_manifest(directory)
    sizes = [SizeRange((64, 80), (64, 80), (64, 80)), SizeRange((50, 60), (100, 120), (100, 120))]
    shapes = [profile_shapes(manifest.spec, batch, size) for size in sizes]
    profiles = [{k: [list(s) for s in triple] for k, triple in p.items()} for p in shapes]
    files = manifest.files | {"model.plan": sha256_from_file(directory / "model.plan")}
    changes: dict[str, Any] = {"model": "model.plan", "files": files, "profiles": profiles}
    manifest = replace(manifest, backend="tensorrt", backend_version="10.14.1", **changes)
    (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return directory


def config_of(repository: Path, name: str) -> Any:
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, schema.ModelConfig())


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_repository_holds_the_engine_and_its_batcher(ort: Path, tmp_path: Path) -> None:
    write_repository([ort], tmp_path / "repo", OPTIONS)
    files = {p.relative_to(tmp_path / "repo").as_posix() for p in (tmp_path / "repo").rglob("*.*")}
    assert files == {
        "unetrt.json",
        "steel/config.pbtxt",
        "steel/1/model.py",
        "steel_engine/config.pbtxt",
        "steel_engine/1/model.onnx",
    }
    copied = tmp_path / "repo" / "steel_engine" / "1" / "model.onnx"
    assert copied.read_bytes() == (ort / "model.onnx").read_bytes()
    compile((tmp_path / "repo/steel/1/model.py").read_text(encoding="utf-8"), "model.py", "exec")


def test_the_model_file_runs_as_its_config_declares(ort: Path, tmp_path: Path) -> None:
    """Inputs are made from the config alone: names, types, dimensions, the warm-up's shapes."""
    write_repository([ort], tmp_path / "repo", OPTIONS)
    config = config_of(tmp_path / "repo", "steel_engine")
    assert (config.name, config.backend, config.max_batch_size) == (
        "steel_engine",
        "onnxruntime",
        0,
    )
    file = tmp_path / "repo" / config.name / "1" / config.default_model_filename
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert len(config.model_warmup) >= 1
    for warmup in config.model_warmup:
        inputs = {}
        for declared in config.input:
            shape = tuple(warmup.inputs[declared.name].dims)
            assert len(shape) == len(declared.dims)
            assert all(d in (-1, s) for d, s in zip(declared.dims, shape, strict=True))
            inputs[declared.name] = np.zeros(shape, DTYPES[declared.data_type])
        (mask,) = session.run([o.name for o in config.output], inputs)
        assert mask.dtype == DTYPES[config.output[0].data_type]
        assert mask.ndim == len(config.output[0].dims)
        assert mask.shape == (inputs["image"].shape[0], *inputs["size_like"].shape)


def test_warm_up_has_the_shapes_of_the_golden_images(ort: Path, tmp_path: Path) -> None:
    write_repository([ort], tmp_path / "repo", OPTIONS)
    config = config_of(tmp_path / "repo", "steel_engine")
    found = {
        (tuple(w.inputs["image"].dims), tuple(w.inputs["size_like"].dims))
        for w in config.model_warmup
    }
    golden = read_golden(ort / GOLDEN)
    assert found == {((1, *case.image.shape), case.size) for case in golden}
    assert all(w.batch_size == 1 for w in config.model_warmup)  # Triton asks for it


def test_what_clients_call_batches_and_says_how_images_are_made(ort: Path, tmp_path: Path) -> None:
    options = TritonOptions(instances=3, max_batch=5, delay=700)
    write_repository([ort], tmp_path / "repo", options)
    config = config_of(tmp_path / "repo", "steel")
    assert (config.backend, config.max_batch_size) == ("python", 5)
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    tensors = {t.name: (t.data_type, list(t.dims)) for t in (*config.input, *config.output)}
    assert tensors == {
        "image": (schema.TYPE_UINT8, [-1, -1, 3]),
        "size": (schema.TYPE_INT32, [2]),
        "mask": (schema.TYPE_UINT8, [-1, -1]),
    }
    stated = parameters(config)
    assert (stated["engine"], stated["min_batch"]) == ("steel_engine", "1")
    assert ModelSpec.from_json(stated["unetrt.spec"]) == read_manifest(ort).spec
    engine = config_of(tmp_path / "repo", "steel_engine")
    assert [(g.kind, g.count) for g in engine.instance_group] == [
        (schema.ModelInstanceGroup.KIND_CPU, 3)
    ]


def test_a_plan_is_served_by_its_profiles(ort: Path, tmp_path: Path) -> None:
    directory = plan(ort, tmp_path / "plan", batch=(2, 4, 16))
    write_repository([directory], tmp_path / "repo", TritonOptions(instances=2))
    config = config_of(tmp_path / "repo", "plan_engine")
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
    copied = tmp_path / "repo" / "plan_engine" / "1" / "model.plan"
    assert copied.read_bytes() == b"plan" * 100
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.KIND_GPU, 2)
    assert list(group.profile) == ["0", "1"]
    shapes = [tuple(w.inputs["image"].dims) for w in config.model_warmup]
    assert shapes == [(4, 32, 40, 3), (4, 50, 60, 3)]
    batcher = config_of(tmp_path / "repo", "plan")
    assert batcher.max_batch_size == 16
    assert parameters(batcher)["min_batch"] == "2"


@pytest.mark.parametrize("batch", [1, 17])
def test_a_plan_is_not_asked_for_batches_that_it_was_not_built_for(
    ort: Path, tmp_path: Path, batch: int
) -> None:
    directory = plan(ort, tmp_path / "plan", batch=(2, 4, 16))
    with pytest.raises(UserError, match="not built for such batches"):
        write_repository([directory], tmp_path / "repo", TritonOptions(max_batch=batch))
    assert not (tmp_path / "repo").exists()


def test_openvino_is_told_its_precision(ort: Path, tmp_path: Path) -> None:
    directory = variant(ort, tmp_path / "ov", backend="openvino", precision="bf16")
    write_repository([directory], tmp_path / "repo", OPTIONS)
    config = config_of(tmp_path / "repo", "ov_engine")
    assert config.backend == "openvino"
    assert parameters(config) == {"HINT_BF16": "YES"}


REFUSED: dict[str, tuple[dict[str, Any], TritonOptions, str]] = {
    "rtx": ({"backend": "tensorrt-rtx"}, OPTIONS, "(?s)Triton has no backend.*--backend tensorrt"),
    "torch": ({"backend": "torch"}, OPTIONS, "(?s)Triton has no backend.*--backend onnxruntime"),
    "fp32": ({"backend": "openvino"}, OPTIONS, "cannot be told to compute in fp32"),
    "gpu": (
        {"backend": "openvino", "precision": "bf16"},
        TritonOptions(kind="gpu"),
        "does not run openvino engines on a gpu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_triton_cannot_run_is_refused_before_anything_is_written(
    ort: Path, tmp_path: Path, name: str
) -> None:
    changes, options, message = REFUSED[name]
    directory = variant(ort, tmp_path / name, **changes)
    with pytest.raises(UserError, match=message):
        write_repository([ort, directory], tmp_path / "repo", options)
    assert {p.name for p in tmp_path.iterdir()} == {name}


def test_a_damaged_engine_is_refused(ort: Path, tmp_path: Path) -> None:
    directory = variant(ort, tmp_path / "damaged")
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="not the engine that was built"):
        write_repository([directory], tmp_path / "repo", OPTIONS)


def test_names_are_the_clients_addresses(ort: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same = variant(ort, tmp_path / "other" / "steel")
    with pytest.raises(UserError, match="under one name"):
        write_repository([ort, same], tmp_path / "repo", OPTIONS)
    taken = variant(ort, tmp_path / "steel_engine")
    with pytest.raises(UserError, match="under one name"):
        write_repository([ort, taken], tmp_path / "repo", OPTIONS)
    spaced = variant(ort, tmp_path / "my engine")
    with pytest.raises(UserError, match="no name for a model"):
        write_repository([spaced], tmp_path / "repo", OPTIONS)


def test_the_same_command_twice_writes_once(ort: Path, tmp_path: Path) -> None:
    first = write_repository([ort], tmp_path / "repo", OPTIONS)
    before = snapshot(tmp_path / "repo")
    second = write_repository([ort], tmp_path / "repo", OPTIONS)
    assert (first.reused, second.reused) == (False, True)
    assert snapshot(tmp_path / "repo") == before


def test_what_would_change_needs_replace(ort: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    write_repository([ort], repo, OPTIONS)
    with pytest.raises(UserError, match="would change") as refused:
        write_repository([ort], repo, TritonOptions(instances=2))
    assert refused.value.seen == "other engines or options"
    write_repository([ort], repo, TritonOptions(instances=2), replace=True)
    assert config_of(repo, "steel_engine").instance_group[0].count == 2
    config = repo / "steel" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8") + "# tuned\n", encoding="utf-8")
    with pytest.raises(UserError, match="would change") as refused:
        write_repository([ort], repo, TritonOptions(instances=2))
    assert refused.value.seen == "files changed"
    assert [p.name for p in tmp_path.iterdir()] == ["repo"]


def test_no_other_folder_is_ever_replaced(ort: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(UserError):
            write_repository([ort], target, OPTIONS, replace=True)
    assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_the_target_of_a_link_is_written_and_the_link_stays(ort: Path, tmp_path: Path) -> None:
    """A server may read the target by its own name."""
    served, link = tmp_path / "disk" / "served", tmp_path / "repo"
    link.symlink_to(Path("disk") / "served")
    for instances in (1, 2):
        options = TritonOptions(instances=instances)
        written = write_repository([ort], link, options, replace=instances > 1)
        assert written.path == link
        assert link.is_symlink()
        assert config_of(served, "steel_engine").instance_group[0].count == instances
    assert [p.name for p in served.parent.iterdir()] == ["served"], "nothing is left beside it"


def test_numbers_at_their_bounds_are_written(ort: Path, tmp_path: Path) -> None:
    options = [f"--instances={MOST_INSTANCES}", f"--max-batch={MOST_BATCH}"]
    options.append(f"--delay={MOST_DELAY}")
    assert main(["triton", str(ort), "-o", str(tmp_path / "repo"), *options]) == 0
    config = config_of(tmp_path / "repo", "steel")
    assert config.dynamic_batching.max_queue_delay_microseconds == MOST_DELAY
    assert config.max_batch_size == MOST_BATCH


def test_an_address_is_no_folder_to_write_to(
    ort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["triton", str(ort), "-o", "s3://bucket/repo"]) == 2
    told = capsys.readouterr().err
    assert "a folder of this machine" in told
    assert "to s3://bucket/repo" in told
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_that_is_not_passed_is_said(
    ort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = read_manifest(ort).gate | {"verdict": "graph-only"}
    directory = variant(ort, tmp_path / "unproven", gate=gate)
    write_repository([directory], tmp_path / "repo", OPTIONS)
    assert "graph-only" in caplog.text


def test_without_tritonclient_the_install_line_is_named(
    ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(UserError) as error:
        write_repository([ort], tmp_path / "repo", OPTIONS)
    assert error.value.hint == pip_install("'unetrt[triton]'")
    assert not list(tmp_path.iterdir())


def test_the_command_names_models_and_the_server_s_command(
    ort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = plan(ort, tmp_path / "plan")
    repo = tmp_path / "repo"
    assert main(["triton", str(ort), str(directory), "-o", str(repo), "--max-batch", "4"]) == 0
    printed = capsys.readouterr().out
    assert "steel: batches of up to 4, onnxruntime fp32" in printed
    assert "TensorRT 10.14.1" in printed
    assert f"--model-repository={repo}" in printed
    assert printed.startswith(f"{repo}: 2 engines\n")
    assert main(["triton", str(ort), "-o", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'one'}: 1 engine\n")
    assert main(["triton", str(ort), "-o", str(repo)]) == 2
    assert "--replace" in capsys.readouterr().err
