"""What does not fit into memory is decoded at the first start, and not again at the next ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import UserError
from unetrt.contract.masks import read_stored, true_classes
from unetrt.contract.resize import network_input
from unetrt.training import known
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.samples import TrainingData, load_training_data
from unetrt.training.train import train
from unetrt.training.weights import loss_from_recipe

HOUR_AGO = time.time() - 3600
own_folder = known._folder


@pytest.fixture
def options(quick_options: TrainOptions, tmp_path: Path) -> TrainOptions:
    """Of files of its own, an hour old."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for source, folder in ((quick_options.images, images), (quick_options.masks, masks)):
        shutil.copytree(source, folder)
        for file in folder.iterdir():
            os.utime(file, (HOUR_AGO, HOUR_AGO))
    return replace(quick_options, mask_values=(0, 1, 2, 3), images=images, masks=masks)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders and files that were decoded, in turn."""
    found: list[str] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reads(path: Path, *given: Any, **named: Any) -> Any:
            found.append(f"{path.parent.name}/{path.name}")
            return read(path, *given, **named)

        return reads

    for name, read in (
        ("mask_files.read_stored", read_stored),
        ("pairs.read_stored", read_stored),
        ("pairs.network_input", network_input),
        ("samples.true_classes", true_classes),
    ):
        monkeypatch.setattr(f"unetrt.training.{name}", counted(read))
    return found


def start(options: TrainOptions) -> TrainingData:
    """One for which there is no memory."""
    return load_training_data(options, None, memory=0)


def write_mask(path: Path, value: int) -> None:
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] = value
    Image.fromarray(pixels).save(path)
    os.utime(path, (HOUR_AGO, HOUR_AGO))


def test_a_second_start_decodes_nothing_and_finds_the_same(
    options: TrainOptions, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = start(options)
    assert len(decoded) == 3 * 16, "each mask for the values of all, then each pair"
    assert "earlier" not in caplog.text
    decoded.clear()
    assert start(options) == first
    assert decoded == []
    assert "16 images do not fit" in caplog.text
    assert "16 of them are known from an earlier start" in caplog.text
    assert first.train[0].load()[0].shape == (48, 64, 1)


def test_a_mask_that_has_changed_is_read_again(options: TrainOptions, decoded: list[str]) -> None:
    """Of the same time, and its unknown value is an error each time, until it is gone."""
    start(options)
    [wrong, *_] = sorted(options.masks.iterdir())
    before = wrong.read_bytes()
    write_mask(wrong, 9)
    for _ in range(2):
        decoded.clear()
        with pytest.raises(UserError, match=r"no class has \(9 in 1 pixels\)"):
            start(options)
        assert {Path(name).stem for name in decoded} == {wrong.stem}
    wrong.write_bytes(before)
    os.utime(wrong, (HOUR_AGO, HOUR_AGO))
    decoded.clear()
    start(options)
    assert {Path(name).stem for name in decoded} == {wrong.stem}


def test_an_image_that_has_changed_has_another_checksum(
    options: TrainOptions, decoded: list[str]
) -> None:
    before = start(options)
    image = before.train[3].pair.image
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    os.utime(image, (HOUR_AGO, HOUR_AGO))
    decoded.clear()
    after = start(options)
    assert decoded == [f"images/{image.name}", f"masks/{before.train[3].pair.mask.name}"]
    changed = [a != b for a, b in zip(after.train, before.train, strict=True)]
    assert changed == [index == 3 for index in range(12)]
    after.train[3].load()


def test_a_file_that_has_just_changed_is_not_trusted(
    options: TrainOptions, decoded: list[str]
) -> None:
    [mask, *_] = sorted(options.masks.iterdir())
    os.utime(mask, (time.time() + 60, time.time() + 60))
    start(options)
    decoded.clear()
    start(options)
    assert {Path(name).stem for name in decoded} == {mask.stem}


@pytest.mark.parametrize("damage", ["cut", "one digit", "empty", "other code", "a folder"])
def test_a_cache_that_is_damaged_or_of_other_code_is_none(
    damage: str,
    options: TrainOptions,
    decoded: list[str],
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start(options)
    assert sorted(path.name[:5] for path in cache_folder.iterdir()) == ["masks", "pairs"]
    for path in cache_folder.iterdir():
        whole = path.read_bytes()
        digit = whole.replace(b"48,64,48", b"48,65,48").replace(b"[[0,", b"[[1,")
        assert digit != whole
        cut, texts = whole[: len(whole) // 2], {"one digit": digit, "empty": b""}
        if damage == "a folder":
            path.unlink()
            path.mkdir()
        elif damage != "other code":
            path.write_bytes(texts.get(damage, cut))
    if damage == "other code":
        monkeypatch.setattr(known, "_readers", lambda: b"newer")
    decoded.clear()
    assert start(options) == first
    assert len(decoded) == 3 * 16
    decoded.clear()
    start(options)
    assert len(decoded) == (3 * 16 if damage == "a folder" else 0)


@pytest.mark.parametrize("there", [True, False])
def test_a_cache_that_cannot_be_written_stops_nothing(
    there: bool, options: TrainOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file stands where the folder would; or nobody has a home."""
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "unetrt" if there else None
    monkeypatch.setattr(known, "_folder", lambda: folder)
    monkeypatch.setattr("unetrt.training.samples.half_of_memory", lambda: 0)
    assert train(options).exists()


def test_what_fits_is_read_and_the_rest_is_known(
    options: TrainOptions, decoded: list[str], cache_folder: Path
) -> None:
    """A part of the memory is for masks of the first pass, which is over when the second begins."""
    load_training_data(options, None)
    assert not cache_folder.exists(), "all of it fits"
    memory = 5 * (48 * 64 * 2)
    before = load_training_data(options, None, memory=memory)
    decoded.clear()
    after = load_training_data(options, None, memory=memory)
    assert len(decoded) == 2 * 5
    pairs = list(zip(after.train, before.train, strict=True))
    assert [bool(a.held) for a, _ in pairs] == [bool(b.held) for _, b in pairs]
    assert sum(bool(a.held) for a, _ in pairs) == 5
    for one, other in pairs:
        assert one.checksum == other.checksum
        assert all(np.array_equal(a, b) for a, b in zip(one.load(), other.load(), strict=True))


def test_options_that_change_what_is_found_are_told_apart(
    options: TrainOptions, decoded: list[str]
) -> None:
    start(options)
    half = replace(options, scale=0.5)
    decoded.clear()
    assert start(half).train[0].input_size == (24, 32)
    assert len(decoded) == 2 * 16, "the masks' values are known"
    decoded.clear()
    assert start(options).train[0].input_size == (48, 64)
    assert start(replace(half, seed=5, width=8, validation=50)).train[0].input_size == (24, 32)
    assert decoded == []


def test_weights_of_the_classes_are_known(options: TrainOptions, decoded: list[str]) -> None:
    start(options)
    for size in ("network", "mask"):
        recipe = RecipeOptions(class_weights="auto", loss_size=size)
        wanted = replace(options, recipe=recipe, scale=0.5)
        there = load_training_data(wanted, None)
        expected = loss_from_recipe(recipe, there.spec, there.train)
        start(wanted)
        decoded.clear()
        data = start(wanted)
        assert loss_from_recipe(recipe, data.spec, data.train) == expected
        assert decoded == []


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_folder() == tmp_path / "unetrt" / "checks"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert own_folder() == tmp_path / "home" / ".cache" / "unetrt" / "checks"


def test_caches_that_nobody_used_for_long_are_removed(
    options: TrainOptions, cache_folder: Path
) -> None:
    cache_folder.mkdir()
    for name, days in (("old", 100), ("new", 10)):
        (cache_folder / name).touch()
        os.utime(cache_folder / name, (time.time() - days * 24 * 3600,) * 2)
    start(options)
    assert not (cache_folder / "old").exists()
    assert len(list(cache_folder.iterdir())) == 3
