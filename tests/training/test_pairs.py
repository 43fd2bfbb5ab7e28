from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.headers import ORIENTATION
from unetrt.contract.spec import ModelSpec
from unetrt.training.options import TrainOptions
from unetrt.training.pairs import (
    Problem,
    checked_pairs,
    load_pair,
    match_pairs,
    raise_problems,
)
from unetrt.training.samples import load_training_data

Folders = tuple[Path, Path]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_names_match_whatever_the_suffix(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    touch(images, "a.jpg", "b.JPEG", "part.2.v1.png", "sub/dir/a.tif", "car_01.jpg", "own_mask.png")
    touch(masks, "a.png", "b.npy", "part.2.v1.gif", "sub/dir/a.bmp", "car_01_mask.gif")
    touch(masks, "own_mask.png")
    pairs, problems = match_pairs(images, masks)
    assert not problems
    assert {p.name: p.mask.relative_to(masks).as_posix() for p in pairs} == {
        "a": "a.png",
        "b": "b.npy",
        "car_01": "car_01_mask.gif",
        "own_mask": "own_mask.png",
        "part.2.v1": "part.2.v1.gif",
        "sub/dir/a": "sub/dir/a.bmp",
    }
    assert all(p.image.relative_to(images).with_suffix("").as_posix() == p.name for p in pairs)


def test_hidden_and_foreign_files_are_passed_over(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    touch(images, "a.jpg", ".b.jpg", ".cache/c.jpg", "notes.txt")
    touch(masks, "a.png", "._a.png", ".cache/c.png", "README.md")
    pairs, problems = match_pairs(images, masks)
    assert [p.name for p in pairs] == ["a"]
    assert not problems


def test_masks_are_found_through_links_as_images_are(empty_pairs: Folders, tmp_path: Path) -> None:
    for folder, name in zip(empty_pairs, ("a.jpg", "a.png"), strict=True):
        real = tmp_path / f"real-{folder.name}"
        real.mkdir()
        (real / name).touch()
        (folder / "batch").symlink_to(real)
    pairs, problems = match_pairs(*empty_pairs)
    assert [pair.name for pair in pairs] == ["batch/a"]
    assert not problems


def test_each_file_without_one_partner_is_told(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    touch(images, "good.jpg", "lonely.jpg", "many.jpg", "twice.jpg", "twice.png")
    touch(masks, "good.png", "orphan.png", "many.png", "many_mask.gif", "twice.png")
    pairs, problems = match_pairs(images, masks)
    assert [p.name for p in pairs] == ["good"]
    assert [p.name for p in problems] == ["lonely", "many", "orphan", "twice"]
    starts = sorted(p.text.split(str(images.parent))[0] for p in problems)
    assert starts == ["no image for ", "no mask for ", "several images for ", "several masks for "]
    text = "\n".join(p.text for p in problems)
    assert all(name in text for name in ("lonely.jpg", "orphan.png", "many_mask.gif", "twice.jpg"))


def test_missing_and_empty_mask_folders_are_told(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    touch(images, "a.jpg")
    with pytest.raises(UserError, match="no masks in"):
        match_pairs(images, masks)
    with pytest.raises(UserError, match="no folder of masks"):
        match_pairs(images, masks / "nothing")


def test_a_long_list_of_problems_is_sorted_cut_and_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's folder, and where there is none yet, in one of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    problems = [Problem(f"{i:02}", f"problem {i:02}") for i in reversed(range(30))]
    for folder in (tmp_path, tmp_path / "none", None):
        with pytest.raises(UserError) as caught:
            raise_problems([*problems, problems[0]], folder)
        text = str(caught.value)
        assert "30 problems" in text
        assert "problem 19\n" in text
        assert "problem 20" not in text
        place = Path(text.split("… and 10 more: all are in ")[1].splitlines()[0])
        assert (place.parent == tmp_path) == (folder == tmp_path)
        assert place.read_text().splitlines() == [f"problem {i:02}" for i in range(30)]
    assert not (tmp_path / "none").exists()
    raise_problems([])


def test_truths_are_class_indices_at_the_file_s_size(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(images / "a.png")
    Image.fromarray(np.eye(8, 12, dtype=np.uint8) * 255).save(masks / "a.png")
    spec = ModelSpec(channels=1, mask_values=(0, 255), scale=0.5)
    [pair] = checked_pairs(images, masks)
    image, size, truth = load_pair(pair, spec)
    assert image.shape == (4, 6, 1)
    assert size == (8, 12)
    assert np.array_equal(truth, np.eye(8, 12))
    Image.fromarray(np.zeros((8, 11), np.uint8)).save(masks / "a.png")
    with pytest.raises(ImageError, match="differ in size"):
        load_pair(pair, spec)


def write_turned(folders: tuple[Path, Path], size: tuple[int, int], image: int, mask: int) -> None:
    """A photo and its mask of `size` as stored, with their EXIF orientations."""
    for folder, name, orientation in zip(folders, ("a.jpg", "a.png"), (image, mask), strict=True):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        pixels = np.resize(np.array([0, 1], np.uint8), size)
        Image.fromarray(pixels).save(folder / name, exif=exif)


@pytest.mark.parametrize(
    ("size", "image", "mask", "in_doubt"),
    [
        *[((16, 16), 6, 1, True), ((16, 24), 3, 1, True)],
        *[((16, 16), 6, 6, False), ((16, 24), 1, 1, False)],
    ],
)
def test_masks_of_turned_photos_are_warned_of_where_their_size_tells_nothing(
    empty_pairs: tuple[Path, Path], size: tuple[int, int], image: int, mask: int, in_doubt: bool
) -> None:
    write_turned(empty_pairs, size, image, mask)
    for folder in empty_pairs:
        for path in list(folder.iterdir()):
            path.with_stem("b").write_bytes(path.read_bytes())
    options = TrainOptions(images=empty_pairs[0], masks=empty_pairs[1], channels=1, validation=50)
    warnings = load_training_data(options, None).warnings
    told = [w for w in warnings if w.startswith("2 of 2 images are turned by an EXIF orientation")]
    assert len(told) == in_doubt


def test_a_mask_of_the_stored_pixels_says_how_to_mend_the_photo(
    empty_pairs: tuple[Path, Path],
) -> None:
    write_turned(empty_pairs, (16, 24), 6, 1)
    [pair] = checked_pairs(*empty_pairs)
    with pytest.raises(ImageError, match="differ in size") as caught:
        load_pair(pair, ModelSpec(channels=1))
    assert "exiftool" in str(caught.value.hint)
    write_turned(empty_pairs, (16, 24), 1, 6)
    with pytest.raises(ImageError, match="differ in size") as caught:
        load_pair(pair, ModelSpec(channels=1))
    assert caught.value.hint is None
