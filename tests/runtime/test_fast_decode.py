"""JPEG at reduced size: only where the masks of the job's own images stay."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import torch_engine
from unetrt.contract.errors import DeviceMemoryError, ImageError, UserError
from unetrt.contract.images import read_image, read_reduced
from unetrt.contract.types import U8, Size
from unetrt.runtime import fast_decode
from unetrt.runtime.fast_decode import Measured, measure_fast_decode, require_fast_decode
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks


def half(size: Size) -> Size:
    return size[0] // 2, size[1] // 2


def jpeg(pixels: U8, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(file, "JPEG", quality=92, **options)  # type: ignore[arg-type]
    return file.getvalue()


def folder_of(folder: Path, pictures: list[U8], suffix: str = ".jpg") -> list[Task]:
    folder.mkdir()
    for index, pixels in enumerate(pictures):
        if suffix == ".jpg":
            (folder / f"{index}.jpg").write_bytes(jpeg(pixels))
        else:
            Image.fromarray(pixels[..., 0]).save(folder / f"{index}{suffix}")
    return plan_tasks([str(folder)], output_dir=folder.parent / "out")


def smooth(count: int = 5) -> list[U8]:
    return [steel(index, 128, 160) for index in range(count)]


def noise(count: int = 3) -> list[U8]:
    draw = np.random.default_rng
    return [draw(i).integers(0, 256, (96, 96, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_comes_at_half_its_size_and_upright(orientation: int, channels: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = jpeg(steel(0, 128, 200, 3), exif=exif)
    whole = read_image(data, channels)
    reduced, size = read_reduced(data, channels, half)
    assert size == whole.shape[:2]
    assert reduced.shape == (*half(size), channels)
    height, width = half(size)
    means = whole.reshape(height, 2, width, 2, channels).mean((1, 3))
    assert np.abs(reduced - means).mean() < 3
    odd = jpeg(steel(0, 129, 200, 3), exif=exif)
    reduced, size = read_reduced(odd, channels, half)
    assert size == read_image(odd, channels).shape[:2]
    assert sorted(reduced.shape[:2]) == [65, 100], "rounded up"


def test_what_is_not_twice_as_large_or_no_jpeg_comes_whole() -> None:
    data = jpeg(steel(0, 64, 64))
    for least in ((33, 20), (20, 33), (64, 64)):
        assert read_reduced(data, 1, lambda _, least=least: least)[0].shape == (64, 64, 1)  # type: ignore[misc]
    png = io.BytesIO()
    Image.fromarray(steel(0, 64, 64)[..., 0]).save(png, "PNG")
    assert read_reduced(png.getvalue(), 1, half)[0].shape == (64, 64, 1)


def test_a_truncated_jpeg_is_noticed_at_a_reduced_size_too() -> None:
    data = jpeg(steel(0, 128, 128, 3))
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read_reduced(data[: len(data) * 3 // 4], 3, half)


def test_a_job_says_what_was_measured_and_its_masks_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = folder_of(tmp_path / "in", smooth())
    with torch_engine(balanced_checkpoint(classes=2, scale=0.5)) as engine:
        with caplog.at_level(logging.WARNING):
            assert predict_masks(engine, tasks, PredictOptions(fast_decode=True)).done == 5
        fast = [np.asarray(Image.open(task.output)) for task in tasks if task.output]
        predict_masks(engine, tasks, PredictOptions())
        whole = [np.asarray(Image.open(task.output)) for task in tasks if task.output]
        agreements = measure_fast_decode(engine, tasks).agreements
    shares = [float(np.mean(a == b)) for a, b in zip(fast, whole, strict=True)]
    assert sorted(shares) == pytest.approx(sorted(agreements))
    assert max(shares) < 1, "the reduced image was used"
    assert f"{np.mean(shares):.3%} of the pixels of 5 images equal" in caplog.text


def test_a_model_whose_masks_change_is_refused_with_the_numbers(tmp_path: Path) -> None:
    tasks = folder_of(tmp_path / "in", noise())
    with (
        torch_engine(balanced_checkpoint(channels=3, classes=2, scale=0.5)) as engine,
        pytest.raises(UserError, match="changes this model's masks") as caught,
    ):
        predict_masks(engine, tasks, PredictOptions(fast_decode=True))
    assert "of 3 images equal" in str(caught.value.seen)
    assert "99.5%" in str(caught.value.expected)
    assert not list(tmp_path.glob("out/*.png"))


def test_images_that_are_not_reduced_keep_their_masks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = folder_of(tmp_path / "in", smooth(2), ".png")
    with torch_engine(balanced_checkpoint(classes=2, scale=0.5)) as engine:
        with caplog.at_level(logging.WARNING):
            predict_masks(engine, tasks, PredictOptions(fast_decode=True))
        assert "is a JPEG of twice the input's size, so every image" in caplog.text
        fast = [task.output.read_bytes() for task in tasks if task.output]
        predict_masks(engine, tasks, PredictOptions())
        assert fast == [task.output.read_bytes() for task in tasks if task.output]


def test_a_bad_image_is_left_to_the_job(tmp_path: Path) -> None:
    tasks = folder_of(tmp_path / "in", smooth(2))
    tasks[0].source.write_bytes(b"no image")
    with torch_engine(balanced_checkpoint(classes=2, scale=0.5)) as engine:
        assert len(measure_fast_decode(engine, tasks).agreements) == 1
        summary = predict_masks(engine, tasks, PredictOptions(fast_decode=True))
    assert (summary.done, summary.failed) == (1, 1)


def test_an_image_that_the_engine_does_not_take_is_left_to_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = folder_of(tmp_path / "in", smooth(3))
    with torch_engine(balanced_checkpoint(classes=2, scale=0.5)) as engine:
        refused = [ImageError("outside the profiles"), None, None]
        monkeypatch.setattr(engine, "refusal", lambda *sizes: refused.pop(0))
        assert len(measure_fast_decode(engine, tasks).agreements) == 2
        monkeypatch.undo()

        def full(*_: object) -> U8:
            raise DeviceMemoryError("no memory for this batch")

        monkeypatch.setattr(engine, "infer", full)
        assert measure_fast_decode(engine, tasks) == Measured(short=True)


def test_images_that_were_not_looked_at_are_decoded_whole_where_none_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that fast decode is refused for, between files that are not reduced."""
    tasks = folder_of(tmp_path / "in", noise(4))
    for task in tasks[::2]:
        with Image.open(task.source) as image:
            image.save(task.source, "PNG")
    monkeypatch.setattr(fast_decode, "LOOKED_AT", 2)
    journal = JournalOptions(output_dir=tmp_path / "out", model="0" * 64)
    options = PredictOptions(fast_decode=True, journal=journal)
    with torch_engine(balanced_checkpoint(channels=3, classes=2, scale=0.5)) as engine:
        assert predict_masks(engine, tasks, options).done == 4
        fast = [task.output.read_bytes() for task in tasks if task.output]
        options = PredictOptions(journal=journal)
        assert predict_masks(engine, tasks, options).skipped == 4, "the same job: no fast decode"
        predict_masks(engine, tasks, PredictOptions())
    assert fast == [task.output.read_bytes() for task in tasks if task.output]


@pytest.mark.parametrize("fails", ["device", "host"])
def test_want_of_memory_is_called_so_and_nothing_is_reduced(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = folder_of(tmp_path / "in", noise())

    def full(*_: object) -> NoReturn:
        raise DeviceMemoryError("no memory") if fails == "device" else MemoryError

    with torch_engine(balanced_checkpoint(channels=3, classes=2, scale=0.5)) as engine:
        if fails == "device":
            monkeypatch.setattr(engine, "infer", full)
        else:
            monkeypatch.setattr(fast_decode, "read_reduced", full)
        with caplog.at_level(logging.WARNING):
            assert not require_fast_decode(engine, tasks)
    assert "no memory to measure it with, so every image is decoded whole" in caplog.text
    assert "JPEG" not in caplog.text


def test_one_image_that_changes_is_not_hidden_by_the_others() -> None:
    fast_decode._check([0.999] * 15 + [0.985])
    with pytest.raises(UserError, match="changes this model's masks") as caught:
        fast_decode._check([0.999] * 15 + [0.97])
    assert "97.000% in the worst" in str(caught.value.seen)


def test_a_job_is_not_resumed_with_the_other_decoder(tmp_path: Path) -> None:
    tasks = folder_of(tmp_path / "in", smooth(2))
    journal = JournalOptions(output_dir=tmp_path / "out", model="0" * 64)
    with torch_engine(balanced_checkpoint(classes=2, scale=0.5)) as engine:
        predict_masks(engine, tasks, PredictOptions(fast_decode=True, journal=journal))
        with pytest.raises(UserError, match="another job"):
            predict_masks(engine, tasks, PredictOptions(journal=journal))


def test_several_processes_have_nothing_to_measure_with() -> None:
    with pytest.raises(UserError, match="one process"):
        require_fast_decode(None, [])
