"""unetrt predict: --slots, --tile, --trace and probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command
from tests.conftest import steel
from unetrt.contract.spec import _say_threshold


def test_a_trace_of_the_slots_that_were_asked_for(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    trace, out = tmp_path / "trace.json", tmp_path / "out"
    outcome = unetrt(
        *("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", out),
        *("--slots", 1, "--trace", trace, "--device", "cpu"),
    )
    assert outcome.status == 0
    events = json.loads(trace.read_text())
    rows = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert [row for row in rows if row.startswith("slot")] == ["slot 0"]
    written = [event for event in events if event["name"] == "write"]
    assert len(written) == 4


def test_a_job_that_ends_in_an_error_leaves_its_trace(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    trace = tmp_path / "trace.json"
    outcome = unetrt(
        *("predict", "-m", checkpoint_file(), "-i", tmp_path / "a.png", "--trace", trace)
    )
    assert outcome.status == 2
    assert "decode" in {event["name"] for event in json.loads(trace.read_text())}


def test_a_trace_that_cannot_be_written_is_told_before_the_work(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    for wrong in (
        ["--trace", tmp_path],
        ["--trace", tmp_path / "no" / "t.json"],
        ["--slots", 0],
        ["--slots", 257],
        ["--tile", 511],
    ):
        outcome = unetrt("predict", "-m", checkpoint_file(), "-i", pictures, *wrong)
        assert outcome.status == 2
        assert "expected:" in outcome.err


def test_a_summary_to_the_standard_output_s_own_name_leaves_that_name(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    """`--json /dev/stdout > FILE` as root: a file took the place of /dev/stdout, FILE had none."""
    name, found = tmp_path / "stdout", tmp_path / "found.json"
    name.symlink_to("/proc/self/fd/1")
    if not name.exists():
        pytest.skip("needs /proc")
    asked = ["predict", "-m", checkpoint_file(), "-i", pictures, "-n"]
    command = [sys.executable, "-m", "unetrt.cli", *map(str, asked), "--json", str(name)]
    with found.open("w") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.PIPE, check=True)
    assert json.loads(found.read_text())["done"] == 4
    assert name.is_symlink()
    link = tmp_path / "latest.json"
    link.symlink_to(found)
    assert unetrt(*asked, "--json", link).status == 0
    assert link.is_symlink()
    assert json.loads(found.read_text())["done"] == 4


@pytest.mark.parametrize("classes", [1, 2])
def test_probabilities_of_two_classes_are_a_grey_image(
    classes: int,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
) -> None:
    model = checkpoint_file(classes=classes)
    for fmt in ("index", "prob", "prob-npy"):
        outcome = unetrt(
            *("predict", "-m", model, "-i", pictures, "--output-dir", tmp_path / fmt),
            *("--format", fmt, "--device", "cpu"),
        )
        assert outcome.status == 0, outcome.err
    for name in ("a", "sub/c"):
        with Image.open(tmp_path / "prob" / f"{name}.png") as image:
            assert image.mode == "L"
            levels = np.asarray(image)
        planes = np.load(tmp_path / "prob-npy" / f"{name}.npy")
        mask = np.asarray(Image.open(tmp_path / "index" / f"{name}.png"))
        assert planes.shape == (2, *mask.shape)
        assert planes.dtype == np.uint8
        np.testing.assert_array_equal(levels, planes[1])
        sure = np.abs(levels.astype(int) - 127.5) > 1
        np.testing.assert_array_equal((levels > 127)[sure], (mask > 0)[sure])
        assert len(np.unique(levels)) >= 3


def test_probabilities_of_an_exported_graph(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    onnx, out = tmp_path / "prob.onnx", tmp_path / "out"
    assert unetrt("export", checkpoint_file(), "-o", onnx, "--result", "prob").status == 0
    predict = ("predict", "-m", onnx, "-i", pictures, "--output-dir", out)
    assert unetrt(*predict, "--format", "prob-npy").status == 0
    planes = np.load(out / "a.npy")
    assert planes.shape[0] == 4
    assert np.abs(planes.sum(0, dtype=int) - 255).max() <= 2
    assert "--format prob" in unetrt(*predict).error
    assert "gives probabilities" in unetrt("build", onnx, "-o", tmp_path / "engine").error


def test_probabilities_that_have_no_form_are_refused(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    exported: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
) -> None:
    def predict(model: Path, *more: object) -> str:
        return unetrt("predict", "-m", model, "-i", pictures, *more, "--format", "prob").whole_error

    folder = ("--output-dir", tmp_path / "out")
    assert "--format prob-npy" in predict(checkpoint_file(), *folder)
    assert "shows masks" in predict(checkpoint_file(), "--overlay", tmp_path / "over", *folder)
    assert "shows masks" in predict(checkpoint_file(), "--viz")
    assert (
        "--result prob"
        in unetrt(*("predict", "-m", exported(), "-i", pictures, *folder, "--format", "prob")).error
    )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.png"))


def test_a_flag_that_comes_twice_adds_to_the_first(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    first, second = sorted(pictures.glob("*.png"))[:2]
    out = tmp_path / "out"
    words = ("predict", "-m", checkpoint_file(), "-i", first, "-i", second)
    assert unetrt(*words, "--output-dir", out).status == 0
    assert sorted(p.name for p in out.glob("*.png")) == [first.name, second.name]
    masks = tmp_path / "1.png", tmp_path / "2.png"
    assert unetrt(*words, "-o", masks[0], "-o", masks[1]).status == 0
    assert all(mask.exists() for mask in masks)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no journal below" in unetrt("predict", "--merge", empty, "--merge", out).error


@pytest.mark.parametrize("flag", ["--json", "--trace"])
def test_no_report_replaces_an_image_or_its_mask(
    flag: str, unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    image = min(pictures.glob("*.png"))
    before = image.read_bytes()
    mask = tmp_path / "mask.png"
    words = ("predict", "-m", checkpoint_file(), "-i", image, "-o", mask)
    for path in (image, mask):
        error = unetrt(*words, flag, path).error
        assert f"{flag} names an image or a mask of this job" in error
    assert image.read_bytes() == before
    assert not mask.exists()


def test_a_mask_and_an_overlay_are_two_files(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    image = min(pictures.glob("*.png"))
    mask = tmp_path / "look" / f"{image.stem}.jpg"
    words = ("predict", "-m", checkpoint_file(), "-i", image, "-o", mask)
    error = unetrt(*words, "--overlay", tmp_path / "look").whole_error
    assert f"one file: {mask}" in error
    assert not mask.exists()


def test_masks_in_memory_would_be_gone_with_the_process(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path
) -> None:
    words = ("predict", "-m", checkpoint_file(), "-i", pictures)
    assert "others can read" in unetrt(*words, "--output-dir", "memory://out").err


def test_run_lengths_of_images_that_have_gone_stay(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    """As masks in files of their own do: those of this run first."""
    first, second = sorted(pictures.glob("*.png"))[:2]
    out = tmp_path / "out"
    words = ("predict", "-m", checkpoint_file(), "--output-dir", out, "--format", "rle", "-i")
    assert unetrt(*words, first).status == unetrt(*words, second).status == 0
    coco = json.loads((out / "masks.json").read_text())
    assert [Path(i["file_name"]).name for i in coco["images"]] == [second.name, first.name]
    assert [i["id"] for i in coco["images"]] == [1, 2]
    assert {a["image_id"] for a in coco["annotations"]} <= {1, 2}
    first.unlink()
    assert unetrt(*words, pictures).status == 0
    coco = json.loads((out / "masks.json").read_text())
    found = [Path(i["file_name"]).name for i in coco["images"]]
    assert found[-1] == first.name
    assert len(found) == len(set(found)) == 4


def test_a_threshold_makes_no_other_job_of_several_classes(
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    _say_threshold.cache_clear()
    assert unetrt(*words).status == 0
    assert unetrt(*words, "-t", "0.9").status == 0
    assert any("a threshold counts for one logit alone" in r.message for r in caplog.records)


def test_tiles_have_the_mask_of_the_whole(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    Image.fromarray(steel(2, 700, 40)[..., 0]).save(tmp_path / "tall.png")
    masks = []
    for name, flags in (("whole", []), ("tiles", ["--tile", 512])):
        outcome = unetrt(
            *("predict", "-m", checkpoint_file(), "-i", tmp_path / "tall.png", *flags),
            *("-o", tmp_path / f"{name}.png", "--device", "cpu"),
        )
        assert outcome.status == 0, outcome.err
        masks.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert np.mean(masks[0] != masks[1]) <= 1e-4
    assert len(np.unique(masks[0])) > 1


def test_a_network_whose_masks_depend_on_the_whole_has_no_tiles(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    model = checkpoint_file(bilinear=True)
    out = tmp_path / "out"
    outcome = unetrt("predict", "-m", model, "-i", pictures, "--tile", 512, "--output-dir", out)
    assert outcome.status == 2
    assert "depend on the size of the whole image" in outcome.err
    assert not out.exists()
