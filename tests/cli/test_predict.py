"""unetrt predict and evaluate: what is written, what is said, and the exit status."""

from __future__ import annotations

import json
import pickle
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.conftest import steel
from unetrt.contract.masks import class_indices, read_mask
from unetrt.contract.resize import network_input
from unetrt.engine.open import open_engine
from unetrt.training.synthetic import draw_pair

CheckpointFile = Callable[..., Path]

NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.png"]


JOURNAL = ".unetrt/journal.jsonl"


def files_below(folder: Path) -> list[str]:
    """Without the journal."""
    files = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in files if not name.endswith(JOURNAL))


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


class _Runs:
    """A pickle of it makes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def _no_checkpoint(kind: str, path: Path) -> Path:
    if kind == "text":
        path.write_text("weights: many\n")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Runs(path.with_name("executed"))))
    elif kind == "empty":
        path.touch()
    elif kind == "image":
        Image.new("L", (8, 8)).save(path, "PNG")
    return path


@pytest.mark.parametrize("kind", ["text", "zip", "pickle", "empty", "image", "missing"])
@pytest.mark.parametrize("verb", ["predict", "evaluate", "inspect", "export", "build", "convert"])
def test_what_is_no_checkpoint_is_refused_by_every_verb(
    verb: str, kind: str, unetrt: Command, pictures: Path, tmp_path: Path
) -> None:
    model = _no_checkpoint(kind, tmp_path / "model.pth")
    before = files_below(tmp_path)
    arguments = {
        "predict": ["-m", model, "-i", pictures, "--output-dir", tmp_path / "out"],
        "evaluate": [model, "--images", pictures, "--masks", pictures],
        "inspect": [model],
        "export": [model, "-o", tmp_path / "x.onnx"],
        "build": [model, "-o", tmp_path / "engine"],
        "convert": [model, "-o", tmp_path / "x.pth"],
    }[verb]
    error = unetrt(verb, *arguments).whole_error
    assert str(model) in error
    if kind == "pickle":
        assert "run code" in error
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_onnx_without_our_metadata_is_refused(
    unetrt: Command, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "foreign.onnx"
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [tensor], [other])
    onnx.save(onnx.helper.make_model(graph), str(path))
    for arguments in (
        ("predict", "-m", path, "-i", pictures, "--output-dir", tmp_path / "out"),
        ("inspect", path),
        ("build", path, "-o", tmp_path / "engine"),
    ):
        assert "unetrt.spec" in unetrt(*arguments).whole_error
    path.write_text("no protobuf")
    assert "is not an ONNX file" in unetrt("inspect", path).error
    assert files_below(tmp_path / "my pictures ü") == sorted(
        ["a.png", "b.png", "sub/c.png", "sub/d.bmp"]
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i", "missing.png"], "no image at missing.png"),
        (["-i", "no/*.png"], "no image matches"),
        (["-i", "@none.txt"], "cannot read the list"),
        (["-i", "{empty}"], "no images in"),
        (["-i", "{pictures}", "-o", "x.png"], "1 files for 4 images"),
        (["-i", "{pictures}/a.png", "-o", "x.webp"], "not written as .webp"),
        (["-i", "{pictures}/a.png", "-o", "x.png", "--output-dir", "y"], "exclude each other"),
        (["-i", "{pictures}", "--output-dir", "{pictures}"], "would replace the image"),
        (["-i", "{pictures}", "-n", "--classes", "2"], "another number of classes"),
        (["-i", "{pictures}", "-n", "--bilinear"], "transposed"),
        (["-i", "{pictures}", "-n", "--format", "bilevel"], "two classes"),
        (["-i", "{pictures}", "-n", "--backend", "openvino"], "unetrt build"),
        (["-i", "{pictures}", "--output-dir", "{pictures}/a.png/x"], "output folder"),
    ],
)
def test_a_wrong_request_is_one_message_and_writes_nothing(
    arguments: list[str],
    said: str,
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    before = files_below(tmp_path)
    filled = [text.format(pictures=pictures, empty=empty) for text in arguments]
    outcome = unetrt("predict", "-m", checkpoint_file(), *filled)
    assert said in outcome.error
    assert outcome.out == ""
    assert files_below(tmp_path) == before


def test_another_scale_is_a_wrong_request_for_onnx_and_a_warning_for_a_checkpoint(
    unetrt: Command, checkpoint_file: CheckpointFile, onnx_file: Path, pictures: Path
) -> None:
    arguments = ("-i", pictures / "a.png", "-n", "--scale", "0.5")
    assert "--scale 0.5" in unetrt("predict", "-m", onnx_file, *arguments).whole_error
    outcome = unetrt("predict", "-m", checkpoint_file(), *arguments)
    assert outcome.status == 0
    assert "trained with scale 1.0" in outcome.err


def many_pictures(folder: Path, count: int) -> Path:
    """One picture under many names."""
    folder.mkdir()
    Image.fromarray(steel(0, 256, 256)[..., 0]).save(folder / "0.png")
    for index in range(1, count):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    return folder


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_with_whole_masks_and_the_command_that_goes_on(
    name: signal.Signals, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, out, report = (
        many_pictures(tmp_path / "my imgs", 2000),
        tmp_path / "out",
        tmp_path / "j",
    )
    arguments = ["predict", "-m", checkpoint_file(), "-i", images, "--output-dir", out]
    arguments += ["--json", report]
    command = [sys.executable, "-m", "unetrt.cli", *map(str, arguments)]
    job = subprocess.Popen(
        [*command, "--restart"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job that a shell runs in the background ignores the signal, its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while job.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.02)
    start = time.monotonic()
    job.send_signal(name)
    _, told = job.communicate(timeout=60)
    assert time.monotonic() - start < 15
    assert job.returncode == 130
    assert "Traceback" not in told
    assert f"Hint: unetrt {shlex.join(map(str, arguments))}   goes on\n" in told
    written = files_below(out)
    assert 0 < len(written) < 2000
    assert all(read_mask(out / path).shape == (256, 256) for path in written)
    journal = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()[1:]]
    assert sorted(entry["output"] for entry in journal) == written
    summary = json.loads(report.read_text())
    assert summary["done"] == len(written)
    assert summary["done"] + summary["failed"] + summary["skipped"] == 2000


def test_the_same_command_goes_on_and_another_is_refused(
    unetrt: Command, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures, "--output-dir", tmp_path / "out")
    assert unetrt(*asked).out == "4 planned = 4 done + 0 failed + 0 skipped\n"
    (tmp_path / "out" / "b.png").unlink()
    assert unetrt(*asked).out == "4 planned = 1 done + 0 failed + 3 skipped\n"
    other = unetrt(*asked, "--format", "index").whole_error
    assert 'format "palette"' in other
    assert "--restart" in other
    again = unetrt(*asked, "--format", "index", "--restart")
    assert again.out == "4 planned = 4 done + 0 failed + 0 skipped\n"


def test_strict_ends_with_status_1_at_the_first_bad_image(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images = many_pictures(tmp_path / "in", 60)
    (images / "00.png").write_bytes(b"no image")
    asked = ("predict", "-m", checkpoint_file(), "-i", images, "--output-dir", tmp_path / "out")
    outcome = unetrt(*asked, "--strict")
    assert outcome.status == 1
    assert outcome.out.startswith("61 planned = ")
    assert "+ 1 failed +" in outcome.out
    assert "00.png: " in outcome.err
    assert len(files_below(tmp_path / "out")) < 40


def test_names_come_from_standard_input(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    (pictures / " two  spaces ü.png ").write_bytes((pictures / "a.png").read_bytes())
    names = ["a.png", "sub/d.bmp", " two  spaces ü.png ", "missing.png"]
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
    assert done.stdout == b"4 planned = 3 done + 1 failed + 0 skipped\n"
    assert b"failed: missing.png: " in done.stderr
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "rle"],
        ["--restart"],
        ["--format", "npy", "-o", "mask.png"],
        ["--format", "index", "-o", "mask.npy"],
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str],
    unetrt: Command,
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    asked = ("predict", "-m", checkpoint_file(), "-i", pictures / "a.png", *arguments)
    assert "seen:" in unetrt(*asked).error
    assert files_below(tmp_path) == before


def write_pairs(folder: Path, count: int) -> tuple[Path, Path]:
    images, masks = folder / "imgs", folder / "masks"
    images.mkdir()
    masks.mkdir()
    for index in range(count):
        image, mask = draw_pair(index, (40, 48))
        Image.fromarray(image).save(images / f"{index}.png")
        Image.fromarray(mask).save(masks / f"{index}.png")
    return images, masks


def test_evaluate_says_and_writes_the_scores(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 5)
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    outcome = unetrt(*asked, "--json", tmp_path / "scores.json")
    assert outcome.status == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"foreground_miou", "foreground_dice", "pixel_accuracy", "classes"}
    assert [set(row) for row in scores["classes"]] == [{"name", "iou", "dice"}] * 4
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["class", "IoU", "Dice"]
    assert f"{scores['classes'][1]['iou']:.4f}" in lines[2]
    assert f"{scores['foreground_miou']:.4f}" in lines[5]
    assert json.loads(unetrt(*asked, "--json", "-").out) == scores


def test_evaluate_leaves_out_what_it_cannot_score(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 3)
    Image.fromarray(np.zeros((7, 7), np.uint8)).save(masks / "1.png")
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    outcome = unetrt(*asked)
    assert outcome.status == 1
    assert "differ in size" in outcome.err
    assert "foreground mean" in outcome.out
    for path in images.iterdir():
        path.write_text("no image")
    assert "no image could be used" in unetrt(*asked).whole_error


def test_evaluate_wants_a_mask_for_each_image(
    unetrt: Command, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    images, masks = write_pairs(tmp_path, 3)
    (masks / "2.png").unlink()
    asked = ("evaluate", checkpoint_file(), "--images", images, "--masks", masks)
    assert f"no mask for {images / '2.png'}" in unetrt(*asked).error
    missing = ("evaluate", checkpoint_file(), "--images", tmp_path / "no", "--masks", masks)
    assert "no folder of images" in unetrt(*missing).error


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
