"""Data of 14 bits in files of 16: what is trained on it reads it right, and says so to others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command
from unetrt.contract.images import read_image
from unetrt.engine.manifest import GOLDEN, read_golden, read_manifest
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.synthetic import write_dataset

SIDE = 64
Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Values above 4095: without the depth they are read as a dark picture, and none the wiser."""
    folder = tmp_path_factory.mktemp("deep")
    drawn, masks = write_dataset(folder / "drawn", 8, (SIDE, SIDE))
    images = folder / "images"
    images.mkdir()
    for path in drawn.iterdir():
        samples = read_image(path, 1)[..., 0].astype(np.uint16) << 6
        Image.fromarray(samples).save(images / f"{path.stem}.png")
    return images, masks


def masks_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_every_stage_reads_at_the_depth_of_training(
    unetrt: Command, deep: Folders, tmp_path: Path
) -> None:
    images, masks = deep
    data = ("--images", images, "--masks", masks)
    flags = ("--classes", 4, "--channels", 1, "--width", 4, "--scale", 1, "--epochs", 1)
    run = tmp_path / "run"
    unetrt("train", *data, *flags, "--validation", 25, "--bit-depth", 14, "--out", run)
    assert read_checkpoint(run / "best.pth").spec.bit_depth == 14
    engine = tmp_path / "engine"
    gate = ("--gate-images", images, "--gate-masks", masks)
    unetrt("build", run / "best.pth", "-o", engine, "--backend", "onnxruntime", *gate)
    assert read_manifest(engine).spec.bit_depth == 14
    brightest = max(int(case.image.max()) for case in read_golden(engine / GOLDEN))
    assert brightest > 128, "the gate has seen the pictures as training did"
    unetrt("evaluate", "-m", engine, *data)


def test_a_depth_that_a_checkpoint_does_not_say(
    unetrt: Command, checkpoint_file: CheckpointFile, deep: Folders, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    build = ("build", checkpoint_file(), "-o", engine, "--backend", "onnxruntime")
    unetrt(*build, "--gate-images", deep[0], "--bit-depth", 14)
    assert read_manifest(engine).spec.bit_depth == 14
    found = {}
    for depth in ("", "14", "16"):
        flags = ("--bit-depth", depth) if depth else ()
        unetrt(
            "predict", "-m", engine, "-i", deep[0], "--output-dir", tmp_path / f"at{depth}", *flags
        )
        found[depth] = masks_of(tmp_path / f"at{depth}")
    assert len(found[""]) == 8
    assert found[""] == found["14"] != found["16"]
    unetrt("refit", engine, checkpoint_file(), "--gate-images", deep[0])
    assert read_manifest(engine).spec.bit_depth == 14, "the new weights do not say another"
