"""The whole chain on images of five bands, from files of several kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import CheckpointFile, Command
from unetrt.contract.images import read_image
from unetrt.contract.masks import read_mask
from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.synthetic import write_dataset

tifffile = pytest.importorskip("tifffile", reason="no tifffile: pip install 'unetrt[bands]'")

BANDS, SIDE = 5, 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images of five bands of which each shows the scene at another exposure, and their masks."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn, masks = write_dataset(folder / "drawn", 8, (SIDE, SIDE))
    images = folder / "bands"
    images.mkdir()
    exposures = np.linspace(0.5, 1, BANDS)
    for index, path in enumerate(sorted(drawn.iterdir())):
        bands = (read_image(path, 1) * exposures).astype(np.uint8)
        if index % 2:
            np.save(images / f"{path.stem}.npy", bands)
        else:
            target = images / f"{path.stem}.tif"
            tifffile.imwrite(target, bands, photometric="minisblack", planarconfig="contig")
    return images, masks


def linked(source: Path, folder: Path) -> Path:
    """A folder of links to the images, to which others may be added."""
    images = folder / "images"
    images.mkdir()
    for path in source.iterdir():
        (images / path.name).symlink_to(path)
    return images


@pytest.fixture
def model(checkpoint_file: CheckpointFile) -> Path:
    return checkpoint_file(channels=BANDS)


@pytest.mark.parametrize(
    "backend", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)]
)
def test_every_backend_gives_the_masks_of_pytorch(
    backend: str, unetrt: Command, model: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = scenes
    # The network has learnt nothing: in bf16, the default where a processor has it, no gate passes.
    gate = ("--gate-images", images, "--precision", "fp32")
    build = unetrt("build", model, "-o", tmp_path / "engine", "--backend", backend, *gate)
    assert build.status == 0, build.err
    for source, name in ((model, "pytorch"), (tmp_path / "engine", "engine")):
        done = unetrt(
            *("predict", "-m", source, "-i", images, "--output-dir", tmp_path / name),
            *("--overlay", tmp_path / f"{name}-overlay"),
        )
        assert done.status == 0, done.err
        assert len(list((tmp_path / f"{name}-overlay").glob("*.jpg"))) == 8
        assert unetrt("evaluate", source, "--images", images, "--masks", masks).status == 0
    pairs = zip(*(sorted((tmp_path / n).glob("*.png")) for n in ("pytorch", "engine")), strict=True)
    shares = [(np.mean(read_mask(a) == read_mask(b)), np.unique(read_mask(a))) for a, b in pairs]
    assert len(shares) == 8
    assert np.mean([share for share, _ in shares]) > 0.999
    assert min(len(classes) for _, classes in shares) > 1


def test_an_image_of_other_channels_costs_itself(
    unetrt: Command, model: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images = linked(scenes[0], tmp_path)
    np.save(images / "four.npy", np.zeros((SIDE, SIDE, 4), np.uint8))
    done = unetrt("predict", "-m", model, "-i", images, "--output-dir", tmp_path / "masks")
    assert done.status == 1, done.err
    assert "four.npy has another number of channels than the network" in done.out + done.err
    assert len(list((tmp_path / "masks").glob("*.png"))) == 8


def test_a_network_of_bands_is_trained(
    unetrt: Command, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = scenes
    arguments = ("--channels", BANDS, "--classes", 4, "--width", 4, "--epochs", 1, "--crop", 24)
    arguments += ("--batch-size", 4, "--validation", 25, "--augment", "--out", tmp_path / "run")
    done = unetrt("train", *arguments, "--images", images, "--masks", masks)
    assert done.status == 0, done.err
    assert read_checkpoint(tmp_path / "run" / "best.pth").spec.channels == BANDS


def test_training_lists_every_image_of_other_channels(
    unetrt: Command, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    images, masks = scenes
    arguments = ("--channels", 4, "--classes", 4, "--width", 4, "--out", tmp_path / "run")
    done = unetrt("train", *arguments, "--images", images, "--masks", masks)
    assert done.status == 2
    assert done.err.count("another number of channels") == 8


def test_arrays_beside_pictures_are_no_images(
    unetrt: Command, checkpoint_file: CheckpointFile, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    """As masks or features that were written there before arrays were images."""
    images = linked(scenes[0].parent / "drawn" / "imgs", tmp_path)
    for path in list(images.iterdir()):
        np.save(images / f"{path.stem}.npy", np.zeros((SIDE, SIDE), np.float32))
    done = unetrt("predict", "-m", checkpoint_file(), "-i", images, "--output-dir", tmp_path / "m")
    assert done.status == 0, done.err
    assert "arrays beside pictures" in done.err
    names = {path.name for path in (tmp_path / "m").glob("*.png")}
    assert names == {path.name for path in images.glob("*.png")}


def test_arrays_beside_their_masks_are_not_read_as_images(
    unetrt: Command, model: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    """`--format npy` without --output-dir: IMAGE_OUT.npy lies among the images."""
    images = linked(scenes[0], tmp_path)
    for _ in range(2):
        done = unetrt("predict", "-m", model, "-i", images, "--format", "npy")
        assert done.status == 0, done.err
    assert len(list(images.iterdir())) == 16
