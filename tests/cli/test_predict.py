"""unetrt predict: what is written, what is said, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import NAMES, CheckpointFile, Command, files_below
from tests.conftest import steel
from unetrt.contract.masks import class_indices, read_mask
from unetrt.contract.resize import network_input
from unetrt.engine.open import open_engine


def test_a_folder_of_images_becomes_a_folder_of_masks(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "masks of mine", tmp_path / "done.json"
    outcome = unetrt(
        "predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", out, "--json", report
    )
    assert outcome.status == 0
    assert outcome.out == "4 planned = 4 done + 0 failed + 0 skipped\n"
    assert outcome.err.startswith("engine: torch fp32 on cpu (")
    assert files_below(out) == NAMES
    assert json.loads(report.read_text()) == {
        "planned": 4,
        "done": 4,
        "failed": 0,
        "skipped": 0,
        "failures": [],
    }
    with open_engine(checkpoint_file()) as engine:
        for name in NAMES:
            source = next(pictures.glob(f"{name[:-4]}.*"))
            mask = engine.run(*network_input(source, engine.spec))
            np.testing.assert_array_equal(class_indices(read_mask(out / name), engine.spec), mask)


def test_without_a_folder_masks_are_named_as_in_the_reference(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path
) -> None:
    assert unetrt("predict", "-m", checkpoint_file(), "-i", pictures / "a.png").status == 0
    assert (pictures / "a_OUT.png").is_file()
    before = files_below(pictures)
    assert unetrt("predict", "-m", checkpoint_file(), "-i", pictures, "--no-save").status == 0
    assert files_below(pictures) == before


def test_bad_images_among_good_ones_are_listed_and_the_status_is_1(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    deep = np.full((40, 48), 4000, np.uint16)
    Image.fromarray(deep).save(pictures / "e.tif")
    out, report = tmp_path / "out", tmp_path / "done.json"
    outcome = unetrt(
        "predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", out, "--json", report
    )
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert f"failed: {pictures / 'b.png'}: " in outcome.err
    assert "Hint: --bit-depth 12" in outcome.err
    assert outcome.out == "5 planned = 3 done + 2 failed + 0 skipped\n"
    assert files_below(out) == ["a.png", "sub/c.png", "sub/d.png"]
    told = json.loads(report.read_text())
    assert {failure["input"] for failure in told["failures"]} == {
        str(pictures / "b.png"),
        str(pictures / "e.tif"),
    }


def test_when_no_image_can_be_used_the_request_was_wrong(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    path = tmp_path / "broken.png"
    path.write_text("no image")
    outcome = unetrt("predict", "-m", checkpoint_file(), "-i", path, "--json", tmp_path / "j.json")
    assert "no image could be used" in outcome.whole_error
    assert f"failed: {path}" in outcome.err
    assert json.loads((tmp_path / "j.json").read_text())["failed"] == 1
    assert files_below(tmp_path) == ["broken.png", "j.json"]


def test_json_on_standard_output_is_nothing_but_json(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path
) -> None:
    outcome = unetrt("predict", "-m", checkpoint_file(), "-i", pictures, "-n", "--json", "-")
    assert json.loads(outcome.out)["done"] == 4
    assert "4 planned" in outcome.err


@pytest.mark.parametrize("kind", ["onnx", "engine"])
def test_every_kind_of_model_gives_the_masks_of_the_checkpoint(
    kind: str,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    onnx_file: Path,
    engine_folder: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    model = onnx_file if kind == "onnx" else engine_folder
    for name, path in (("torch", checkpoint_file()), ("other", model)):
        done = unetrt("predict", "-m", path, "-i", pictures, "--output-dir", tmp_path / name)
        assert done.status == 0
    shares = [
        (read_mask(tmp_path / "torch" / name) == read_mask(tmp_path / "other" / name)).mean()
        for name in NAMES
    ]
    assert min(shares) > 0.995


def test_jpeg_is_written_for_two_classes_with_a_warning(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output.jpg"
    arguments = ("-i", pictures / "a.png", "-o", output)
    three = unetrt("predict", "-m", checkpoint_file(classes=3), *arguments)
    assert f"Hint: -o {tmp_path}/output.png" in three.whole_error
    assert not output.exists()
    two = unetrt("predict", "-m", checkpoint_file(classes=2), *arguments)
    assert two.status == 0
    assert "JPEG changes mask values" in two.err
    with Image.open(output) as image:
        assert (image.format, image.size) == ("JPEG", (48, 40))


@pytest.mark.parametrize("fmt", ["index", "palette", "bilevel"])
def test_the_format_is_chosen_by_a_flag(
    fmt: str, unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mask.png"
    model = checkpoint_file(classes=2)
    arguments = ("-i", pictures / "a.png", "-o", output, "--format", fmt)
    assert unetrt("predict", "-m", model, *arguments).status == 0
    with Image.open(output) as image:
        assert image.mode == {"index": "L", "palette": "P", "bilevel": "1"}[fmt]


def test_names_come_from_standard_input(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    (pictures / " two  spaces ü.png ").write_bytes((pictures / "a.png").read_bytes())
    with Image.open(pictures / "a.png") as image:
        image.save(pictures / "cut.tif", compression="tiff_adobe_deflate")
    cut = (pictures / "cut.tif").read_bytes()
    (pictures / "cut.tif").write_bytes(cut[: len(cut) // 2])
    names = ["a.png", "sub/d.bmp", " two  spaces ü.png ", "missing.png", "cut.tif"]
    out = tmp_path / "out"
    command = ["predict", "-m", checkpoint_file(), "-i", "-", "--output-dir", out]
    done = subprocess.run(
        [sys.executable, "-m", "unetrt.cli", *map(str, command)],
        input="\n".join(names).encode(),
        cwd=pictures,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == b"5 planned = 3 done + 2 failed + 0 skipped\n"
    assert b"failed: missing.png: " in done.stderr
    assert b"failed: cut.tif: " in done.stderr
    assert b"Warning" not in done.stderr, "Pillow warns of what has been told"
    assert len(files_below(out)) == 3


def test_npy_rle_and_overlays(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures)
    npy, rle, look = tmp_path / "npy", tmp_path / "rle", tmp_path / "look"
    told = unetrt(*asked, "--output-dir", npy, "--format", "npy", "--overlay", look)
    assert told.status == 0
    assert files_below(npy) == ["a.npy", "b.npy", "sub/c.npy", "sub/d.npy"]
    assert files_below(look) == ["a.jpg", "b.jpg", "sub/c.jpg", "sub/d.jpg"]
    assert unetrt(*asked, "--output-dir", rle, "--format", "rle").status == 0
    assert files_below(rle) == ["masks.json"]
    written = json.loads((rle / "masks.json").read_text())
    assert [image["file_name"] for image in written["images"]] == [
        str(pictures / name) for name in ("a.png", "b.png", "sub/c.png", "sub/d.bmp")
    ]
    with open_engine(checkpoint_file()) as engine:
        for name in ("a.png", "sub/d.bmp"):
            mask = engine.run(*network_input(pictures / name, engine.spec))
            np.testing.assert_array_equal(np.load(npy / Path(name).with_suffix(".npy")), mask)


def test_real_images(
    real_data: Path, unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    found = sorted(p for p in (real_data / "neu_seg" / "batch").rglob("*") if p.is_file())
    images = [p for p in found if p.suffix.lower() in (".jpg", ".png", ".bmp")][:5]
    (tmp_path / "list.txt").write_text("\n".join(map(str, images)))
    out = tmp_path / "out"
    outcome = unetrt(
        "predict", "-m", checkpoint_file(), "-i", f"@{tmp_path}/list.txt", "--output-dir", out
    )
    assert outcome.status == 0
    assert outcome.out == "5 planned = 5 done + 0 failed + 0 skipped\n"
    masks = list(out.rglob("*.png"))
    assert {path.stem for path in masks} == {path.stem for path in images}
    assert all(read_mask(path).shape == (200, 200) for path in masks)


def test_steel_pictures_of_three_channels(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    Image.fromarray(steel(0, 37, 21, 3)).save(tmp_path / "x.jpg")
    model = checkpoint_file(channels=3, classes=1)
    done = unetrt("predict", "-m", model, "-i", tmp_path / "x.jpg", "-t", "0.3", "-s", "0.5")
    assert done.status == 0
    assert read_mask(tmp_path / "x_OUT.png").dtype == np.bool_
