"""The gate's inputs: read before anything is built, at sizes that the plan's profiles hold."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import steel
from unetrt.cli.build import _summary
from unetrt.cli.main import main
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.contract.types import Size
from unetrt.engine.cuda import BatchShape
from unetrt.engine.manifest import GOLDEN, Manifest, read_golden
from unetrt.engine.tensorrt_backend import covering_profile
from unetrt.export import build
from unetrt.export.build import BuildOptions, Built, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.gate_inputs import GateInputs, read_gate_inputs
from unetrt.export.int8 import calibration_inputs
from unetrt.export.profiles import SizeRange, range_of_gate, ranges_from_profiles
from unetrt.export.source import gate_inputs, read_source
from unetrt.export.tensorrt_build import PlanOptions
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.synthetic import write_dataset

Export = Callable[..., Path]
RTX = "tensorrt-rtx"
SPEC = ModelSpec(channels=1, scale=0.5)
SMALL = SizeRange((32, 32), (64, 64), (96, 96))
TALL = SizeRange((200, 40), (200, 40), (200, 40))


class Written(Exception):  # noqa: N818
    """A model file would be written now."""


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Written

    monkeypatch.setattr(build, "write_model", stop)


@pytest.mark.parametrize(
    ("size", "fitted"), [((160, 160), (96, 96)), ((70, 50), (70, 50)), ((230, 20), (200, 40))]
)
def test_what_is_not_the_users_is_resized(size: Size, fitted: Size) -> None:
    case = steel(0, *SPEC.input_size(size)), size
    found = GateInputs("golden", [case], sizes=(size,)).within((SMALL, TALL), SPEC)
    assert found.sizes == (fitted,)
    (image, mask_size) = next(found.golden(SPEC))
    assert mask_size == fitted
    assert image.shape == (*SPEC.input_size(fitted), 1)


def test_of_large_images_an_engine_keeps_the_middle() -> None:
    """Whatever opens it computes them first. Those of a plan have the sizes that it takes."""
    case = np.zeros((1500, 40, 1), np.uint8), (3000, 80)
    found = GateInputs("images", [case], sizes=((3000, 80),))
    ((image, size),) = found.golden(SPEC)
    assert (image.shape, size) == ((1024, 40, 1), (2048, 80))
    ((image, size),) = found.within((SizeRange((1, 1), (64, 64), (3000, 80)),), SPEC).golden(SPEC)
    assert (image.shape, size) == ((1500, 40, 1), (3000, 80))


def test_images_of_the_user_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    sizes = ((64, 64), (300, 64), (20, 20), (300, 64))
    inputs = GateInputs("images", [path], sizes=sizes)
    with pytest.raises(UserError, match="3 of the gate's images") as caught:
        inputs.within((SMALL, TALL), SPEC)
    assert caught.value.seen == "300x64, 20x20"
    assert caught.value.expected == "32x32..96x96 or 200x40"
    assert "--size 300x64 --size 20x20" in str(caught.value.hint)
    assert inputs.within((SizeRange((1, 1), (64, 64), (400, 400)),), SPEC) == replace(
        inputs, bounded=True
    )


def test_a_range_of_all_the_most_frequent_best() -> None:
    sizes = [(64, 64), (10, 90), (33, 17), (10, 90)]
    assert range_of_gate(sizes) == SizeRange((10, 17), (10, 90), (64, 90))


@pytest.mark.usefixtures("unbuilt")
class TestBeforeTheBuild:
    @pytest.mark.parametrize("fault", ["image", "mask", "partner"])
    def test_what_cannot_be_judged_on(
        self, exported: Export, pictures: tuple[Path, Path], tmp_path: Path, fault: str
    ) -> None:
        images = shutil.copytree(pictures[0], tmp_path / "images")
        masks = shutil.copytree(pictures[1], tmp_path / "masks")
        last = {"image": images, "mask": masks, "partner": masks}[fault]
        path = max(last.iterdir())
        if fault == "partner":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:60])
        gate = GateOptions(images=images, masks=masks)
        options = BuildOptions(backend="onnxruntime", precision="fp32", gate=gate)
        with pytest.raises(UserError if fault == "partner" else ImageError, match=path.stem):
            build_engine(exported(), tmp_path / "engine", options)

    def test_images_outside_of_the_profiles(
        self, exported: Export, pictures: tuple[Path, Path], tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        options = BuildOptions(
            backend=RTX, plan=PlanOptions(ranges=(SMALL,)), gate=GateOptions(images=pictures[0])
        )
        with pytest.raises(Written):
            build_engine(exported("fp16"), tmp_path / "engine", options)
        narrow = BuildOptions(
            backend=RTX, plan=PlanOptions(ranges=(TALL,)), gate=GateOptions(images=pictures[0])
        )
        with pytest.raises(UserError, match="8 of the gate's images") as caught:
            build_engine(exported("fp16"), tmp_path / "engine", narrow)
        assert "--size 64x80" in str(caught.value.hint)


def covered(manifest: Manifest, directory: Path) -> None:
    """Every golden case can be replayed on the plan."""
    profiles = [
        {name: (tuple(p[name][0]), tuple(p[name][2])) for name in ("image", "size_like")}
        for p in manifest.profiles
    ]
    for case in read_golden(directory / GOLDEN):
        h, w, channels = case.image.shape
        covering_profile(profiles, BatchShape(1, (h, w), channels, case.size))


class TestPlans:
    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    @pytest.fixture
    def golden(self, checkpoint_file: Export, tmp_path: Path) -> Path:
        checkpoint = read_checkpoint(checkpoint_file())
        checkpoint.golden = [(steel(i, 64, 64), (64, 64)) for i in range(4)]
        write_checkpoint(tmp_path / "golden.pth", checkpoint)
        return tmp_path / "golden.pth"

    def built(self, model: Path, out: Path, **options: Any) -> Built:
        gate = options.pop("gate", GateOptions(min_agreement=0.9))
        built = build_engine(model, out, BuildOptions(backend=RTX, gate=gate, **options))
        covered(built.manifest, out)
        return built

    def test_golden_images_of_another_size(self, golden: Path, tmp_path: Path) -> None:
        ranges = (SizeRange((96, 96), (96, 96), (96, 96)),)
        built = self.built(golden, tmp_path / "e", plan=PlanOptions(ranges=ranges))
        assert ranges_from_profiles(built.manifest.profiles) == ranges
        assert built.gate.inputs == "golden"

    def test_golden_images_of_another_scale(self, golden: Path, tmp_path: Path) -> None:
        overrides = SpecOverrides(scale=0.5)
        built = self.built(golden, tmp_path / "e", overrides=overrides)
        assert built.manifest.profiles[0]["image"][0] == [1, 32, 32, 1]

    def test_drawn_pictures_and_a_word_of_their_size(
        self, exported: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        plan = PlanOptions(batch=(1, 2, 4), sizes=((64, 64), (40, 72)))
        with caplog.at_level(logging.WARNING):
            built = self.built(exported("fp16"), tmp_path / "e", plan=plan)
        assert "drawn pictures" not in caplog.text
        text = _summary(tmp_path / "e", built)
        profile = "profile: images from 40x64 to 64x72, best 64x64; in batches of 1 to 4, best 2"
        assert profile in text
        self.built(exported("fp16"), tmp_path / "f")
        assert "the plan takes images of 256x320 alone" in caplog.text

    def test_a_profile_spans_all_gate_images(self, exported: Export, tmp_path: Path) -> None:
        images, _ = write_dataset(tmp_path / "a", 4, (64, 64), seed=1)
        more, _ = write_dataset(tmp_path / "b", 1, (48, 112), seed=2)
        shutil.copy(next(more.iterdir()), images / "zz.png")
        gate = GateOptions(images=images, min_agreement=0.9)
        built = self.built(exported("fp16"), tmp_path / "e", gate=gate)
        assert ranges_from_profiles(built.manifest.profiles) == (
            SizeRange((48, 64), (64, 64), (64, 112)),
        )
        assert built.gate.images == 5


def test_each_is_read_once_before(exported: Export, pictures: tuple[Path, Path]) -> None:
    gate = GateOptions(images=pictures[0], masks=pictures[1])
    found = read_gate_inputs(read_source(exported()), gate)
    assert found.sizes == ((64, 80),) * 8
    assert len(found.pairs) == 8


@pytest.mark.parametrize("named", [False, True])
def test_int8_without_images_of_its_own_says_so(
    exported: Export,
    pictures: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    named: bool,
) -> None:
    """Whether --calibration is left out, or names the folder of the gate."""
    gate = GateOptions(images=pictures[0], min_agreement=0.5)
    calibration = pictures[0].parent / "." / pictures[0].name if named else None
    options = BuildOptions(
        backend="onnxruntime", precision="int8", gate=gate, calibration=calibration
    )
    build_engine(exported(), tmp_path / "e", options)
    assert "measured on what the gate judges by (images)" in caplog.text


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (("--batch", "1,4,8"), "the openvino backend has no --batch"),
        (("--precision", "fp32", "--fp32-blocks", "none"), "keeps blocks of an fp16 engine"),
    ],
)
def test_flags_that_would_be_ignored(
    exported: Export,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    typed: tuple[str, ...],
    named: str,
) -> None:
    asked = ["build", str(exported()), "-o", str(tmp_path / "e"), "--backend", "openvino"]
    assert main([*asked, *typed]) == 2
    assert named in " ".join(capsys.readouterr().err.split())


def test_sizes_from_a_folder_are_called_so(
    exported: Export,
    pictures: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["build", str(exported()), "-o", str(tmp_path / "e"), "--backend", "openvino"]
    assert main([*asked, "--sizes-from", str(pictures[0])]) == 2
    assert "the openvino backend has no --sizes-from" in capsys.readouterr().err


def test_masks_among_what_judges_or_calibrates_are_told(
    exported: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """write_dataset's own folder holds as many masks as pictures."""
    write_dataset(tmp_path, 2, (40, 48))
    source = read_source(exported())
    caplog.clear()
    assert len(gate_inputs(source, tmp_path)[0]) == 4
    calibration_inputs(source, tmp_path, None)
    gate_inputs(source, tmp_path / "imgs")
    told = [record.message for record in caplog.records]
    assert [text.startswith("2 of 4 files") for text in told] == [True, True]
