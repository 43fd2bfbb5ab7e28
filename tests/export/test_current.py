"""The same request is not built twice; any other one is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetrt.contract.errors import UserError
from unetrt.engine.manifest import GATE, GOLDEN, MANIFEST, rebuild_hint
from unetrt.engine.tensorrt_backend import REBUILD_HERE
from unetrt.export import build, current
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.current import request_of_gate
from unetrt.export.gate import GateOptions
from unetrt.export.tensorrt_build import PlanOptions

Export = Callable[..., Path]
OPTIONS = BuildOptions(backend="onnxruntime", precision="fp32")


class Written(Exception):  # noqa: N818
    """A model file would be written now."""


@pytest.fixture(scope="module")
def built(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "engine"
    assert not build_engine(exported(), path, OPTIONS).reused
    return path


@pytest.fixture
def engine(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a build; from now on, another one raises Written."""
    path = shutil.copytree(built, tmp_path / "engine")

    def stop(*_: Any, **__: Any) -> None:
        raise Written

    monkeypatch.setattr(build, "write_model", stop)
    return path


def test_the_same_request_reuses_the_directory(engine: Path, exported: Export) -> None:
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in engine.iterdir()}
    again = build_engine(exported(), engine, OPTIONS)
    assert again.reused
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in engine.iterdir()} == before
    assert again.gate.to_dict() | {"classes": ()} == json.loads((engine / GATE).read_text()) | {
        "classes": ()
    }
    assert len(again.gate.classes) == 4


def test_force_alone_is_no_other_request(engine: Path, exported: Export) -> None:
    assert build_engine(exported(), engine, replace(OPTIONS, gate=GateOptions(force=True))).reused


@pytest.mark.parametrize(
    "changes",
    [
        {"rebuild": True},
        {"precision": "int8"},
        {"backend": "openvino"},
        {"gate": GateOptions(min_agreement=0.9)},
        {"gate": GateOptions(max_iou_drop=0.5)},
        {"gate": GateOptions(min_class_iou=0.5)},
    ],
)
def test_another_request_is_built(engine: Path, exported: Export, changes: dict[str, Any]) -> None:
    with pytest.raises(Written):
        build_engine(exported(), engine, replace(OPTIONS, **changes))


def test_what_a_plan_alone_has_is_no_part_of_the_request(engine: Path, exported: Export) -> None:
    sizes = PlanOptions(sizes=((64, 64),), verbose=False)
    assert build_engine(exported(), engine, replace(OPTIONS, plan=sizes)).reused


def test_another_source_is_built(
    engine: Path, exported: Export, reweighted: Callable[..., Path], tmp_path: Path
) -> None:
    other = reweighted(exported(), tmp_path / "other.onnx", "net.outc.conv.bias", np.negative)
    with pytest.raises(Written):
        build_engine(other, engine, OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend_version", "0.1"), ("made_by", "unetrt 0"), ("options", {}), ("precision", "fp16")],
)
def test_a_manifest_of_something_else_is_built(
    engine: Path, exported: Export, name: str, value: Any
) -> None:
    raw = json.loads((engine / MANIFEST).read_text())
    (engine / MANIFEST).write_text(json.dumps(raw | {name: value}))
    with pytest.raises(Written):
        build_engine(exported(), engine, OPTIONS)


@pytest.mark.parametrize("name", ["model.onnx", GOLDEN, GATE, MANIFEST])
def test_a_damaged_directory_is_built_again(engine: Path, exported: Export, name: str) -> None:
    data = (engine / name).read_bytes()
    (engine / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(Written):
        build_engine(exported(), engine, OPTIONS)


def test_another_gpu_or_driver_is_another_request(
    engine: Path, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "describe_device", lambda _: "NVIDIA L4, sm89, CUDA 13.0")
    with pytest.raises(Written):
        build_engine(exported(), engine, OPTIONS)


def test_a_hint_to_build_again_names_the_flag_that_does() -> None:
    assert " --rebuild " in rebuild_hint(Path("engine"))
    assert " --rebuild " in REBUILD_HERE


def test_a_changed_picture_is_another_request(
    exported: Export, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = replace(OPTIONS, gate=GateOptions(images=pictures[0]))
    build_engine(exported(), tmp_path / "engine", asked)
    assert build_engine(exported(), tmp_path / "engine", asked).reused
    first = min(pictures[0].iterdir())
    os.utime(first, ns=(1, 1))
    assert not build_engine(exported(), tmp_path / "engine", asked).reused


def test_a_picture_behind_a_link_counts(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "gate"
    for path in (real, folder):
        path.mkdir()
    (folder / "link").symlink_to(real)
    requests = []
    for name in ("a.png", "b.png"):
        (real / name).touch()
        requests.append(request_of_gate(GateOptions(images=folder)))
    assert requests[0] != requests[1]


def test_a_folder_by_another_of_its_names_is_the_same(
    exported: Export,
    pictures: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures[0]
    gate = GateOptions(images=images.resolve())
    build_engine(exported(), tmp_path / "engine", replace(OPTIONS, gate=gate))
    monkeypatch.chdir(images.parent)
    relative = replace(OPTIONS, gate=GateOptions(images=Path(images.name)))
    assert build_engine(exported(), tmp_path / "engine", relative).reused


def test_a_forced_engine_is_not_forced_twice_and_no_answer_without_force(
    exported: Export, tmp_path: Path
) -> None:
    asked = replace(OPTIONS, precision="int8", gate=GateOptions(min_agreement=1.0))
    forced = replace(asked, gate=replace(asked.gate, force=True))
    assert build_engine(exported(), tmp_path / "engine", forced).gate.verdict == "failed"
    again = build_engine(exported(), tmp_path / "engine", forced)
    assert again.reused
    assert again.gate.verdict == "failed"
    with pytest.raises(UserError, match="the gate did not pass"):
        build_engine(exported(), tmp_path / "engine", asked)
