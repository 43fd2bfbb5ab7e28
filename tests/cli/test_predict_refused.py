"""What predict and the other verbs refuse: models that are none, requests that make no sense."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from PIL import Image

from tests.cli.conftest import CheckpointFile, Command, files_below


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
