"""What a message tells a user to do, done."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command, Outcome
from unetrt.engine.manifest import GATE, GOLDEN, MANIFEST, read_manifest
from unetrt.training.synthetic import write_dataset


def hinted(outcome: Outcome) -> list[str]:
    """The words of the command after `Hint: unetrt`, up to its three spaces."""
    hint = outcome.error.rpartition("Hint: ")[2].strip()
    assert hint.startswith("unetrt ")
    return shlex.split(hint.partition("   ")[0])[1:]


@pytest.mark.parametrize("lost", [MANIFEST, GATE, "model.onnx", "content of the manifest"])
def test_half_an_engine_is_built_again(
    lost: str, unetrt: Command, onnx_file: Path, engine_folder: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(engine_folder, tmp_path / "an engine")
    if lost == "content of the manifest":
        (half / MANIFEST).write_bytes(b"")
    else:
        (half / lost).unlink()
    words = hinted(unetrt("inspect", half))
    assert words[:2] == ["build", "CHECKPOINT"]
    assert unetrt("build", onnx_file, *words[2:], "--backend", "onnxruntime").status == 0
    assert read_manifest(half).backend == "onnxruntime"


def test_a_model_alone_may_be_somebodys_own(
    unetrt: Command, engine_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(engine_folder / "model.onnx", folder)
    assert "--rebuild" not in unetrt("inspect", folder).error
    assert not (folder / GOLDEN).exists()


def test_refit_takes_no_folder(
    unetrt: Command, checkpoint_file: CheckpointFile, engine_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    error = unetrt("refit", engine_folder, run).err
    assert "is not a checkpoint" in error
    assert "unetrt build" not in error
    shutil.copy(checkpoint_file(), run / "best.pth")
    assert f"Hint: '{run / 'best.pth'}'" in unetrt("refit", engine_folder, run).whole_error


def test_a_run_named_for_its_checkpoint(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    shutil.copy(checkpoint_file(), tmp_path / "best.pth")
    images, masks = write_dataset(tmp_path / "d", 12, (32, 32), seed=1)
    words = ("train", "--images", images, "--masks", masks, "--classes", 4, "--channels", 1)
    assert f"Hint: {tmp_path / 'best.pth'}   is its" in unetrt(*words, "--load", tmp_path).error


def test_a_place_that_takes_no_run_is_told_before_the_images_are_read(
    unetrt: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = unetrt("train", "--images", tmp_path / "none", "--out", tmp_path / "file" / "run")
    assert outcome.status == 2
    assert "--out" in outcome.err
    assert "is a file" in outcome.err


def test_a_run_in_a_folder_with_a_space_is_resumed_as_told(unetrt: Command, tmp_path: Path) -> None:
    images, masks = write_dataset(tmp_path / "d", 12, (32, 32), seed=1)
    out = tmp_path / "a run"
    words = ["train", "--images", images, "--masks", masks, "--classes", 4, "--channels", 1]
    words += ["--width", 4, "--scale", 1, "--epochs", 1, "--validation", 25]
    assert unetrt(*words, "--out", out).status == 0
    error = unetrt(*words, "--out", out).error
    assert f"--resume '{out}'" in error
    assert f"--out '{out}-2'" in error


def test_masks_that_cannot_be_used_are_no_broken_images(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_dataset(tmp_path, 3, (32, 32), seed=1)
    for path in masks.iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    outcome = unetrt("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    assert "masks of their size and of the model's values" in outcome.error
    assert "absent" not in outcome.out


def test_an_engine_directory_has_no_other_backend(
    unetrt: Command, engine_folder: Path, pictures: Path
) -> None:
    words = ("predict", "-m", engine_folder, "-i", pictures, "-n", "--backend", "torch")
    assert "Hint: name the checkpoint" in unetrt(*words).error


class TestBench:
    """A wrong request ends before the first row."""

    def test_a_gpu_that_is_not_there(
        self, unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path
    ) -> None:
        error = unetrt("bench", checkpoint_file(), "--images", pictures, "--device", "cuda:99")
        assert "no device cuda:99" in error.whole_error

    def test_a_damaged_engine(
        self,
        unetrt: Command,
        checkpoint_file: CheckpointFile,
        engine_folder: Path,
        pictures: Path,
        tmp_path: Path,
    ) -> None:
        half = shutil.copytree(engine_folder, tmp_path / "half")
        (half / GATE).unlink()
        outcome = unetrt("bench", checkpoint_file(), half, "--images", pictures)
        assert "is not the engine that was built" in outcome.error
        assert "reference loop" not in outcome.err

    @pytest.mark.parametrize("kind", ["engine", "ONNX file"])
    def test_another_network(
        self,
        kind: str,
        unetrt: Command,
        engine_folder: Path,
        onnx_file: Path,
        pictures: Path,
        tmp_path: Path,
    ) -> None:
        images, masks = write_dataset(tmp_path / "d", 12, (32, 32), seed=1)
        for path in masks.iterdir():
            mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
            Image.fromarray(mask).save(path)
        words = ["train", "--images", images, "--masks", masks, "--classes", 2, "--channels", 1]
        words += ["--width", 4, "--scale", 1, "--epochs", 1, "--validation", 25]
        assert unetrt(*words, "--out", tmp_path / "run").status == 0
        model = engine_folder if kind == "engine" else onnx_file
        best = tmp_path / "run" / "best.pth"
        error = unetrt("bench", best, model, "--images", pictures).whole_error
        assert f"{model} is of another network than {best}" in error
        assert "classes 4" in error


def test_masks_among_the_images_are_told_where_to_go(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path
) -> None:
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--format", "npy", "--output-dir")
    words = shlex.split(unetrt(*asked, pictures).whole_error.rpartition("Hint: --output-dir ")[2])
    assert unetrt(*asked, *words).status == 0
    assert unetrt(*asked, *words).out == "4 planned = 0 done + 0 failed + 4 skipped\n"


def test_masks_below_the_images_are_none_of_the_gate_s_or_the_bench_s(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    onnx_file: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Where predict's hint had them written, they were judged on and measured as images."""
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", pictures / "found")
    assert unetrt(*asked, "--overlay", pictures / "look").status == 0
    build = ("build", onnx_file, "-o", tmp_path / "engine", "--backend", "onnxruntime")
    assert "judged on 4 images" in unetrt(*build, "--gate-images", pictures).out
    (tmp_path / "only").mkdir()
    (pictures / "found").rename(tmp_path / "only" / "found")
    assert "no images in" in unetrt(*build, "--gate-images", tmp_path / "only").whole_error
    bench = ("bench", checkpoint_file(), "--images", tmp_path / "only")
    assert "no images in" in unetrt(*bench).whole_error
