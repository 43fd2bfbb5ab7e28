"""Files are whole or not there; folders are listed without what is hidden."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetrt.contract import files
from unetrt.contract.errors import UserError
from unetrt.contract.files import (
    IMAGE_SUFFIXES,
    atomic_path,
    image_paths,
    read_whole,
    require_file,
    sha256_from_file,
    told_of_masks,
    write_all,
    write_atomically,
)


class Killed(BaseException):
    """As KeyboardInterrupt, which would end the test run."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_halfway(target: Path, error: BaseException, deep: str = "") -> None:
    """Write a file, or one in a folder, then fail."""
    with atomic_path(target) as temporary:
        file = temporary / deep / "a" if deep else temporary
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"ne")
        raise error


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """What is synced, with what the target holds at that moment."""
    target = tmp_path / "a.bin"
    told: list[tuple[str, bytes]] = []
    target.write_bytes(b"old")

    def sync(descriptor: int, whole: Callable[[int], None] = os.fsync) -> None:
        whole(descriptor)
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        told.append((what, target.read_bytes()))

    monkeypatch.setattr("os.fsync", sync)
    with atomic_path(target, durable=durable) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert told == ([("file", b"old"), ("folder", b"new")] if durable else [])
    write_atomically(target, b"mask")
    assert len(told) == 2 * durable, "masks wait for no disk"


def test_a_disk_that_does_not_keep_a_durable_file_leaves_the_one_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def fails(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="No space"), atomic_path(target, durable=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(error):
        stop_halfway(target, error())
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_error_removes_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        stop_halfway(tmp_path / "d", ValueError("stop"), deep="deep")
    assert names(tmp_path) == []


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.touch()
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert names(tmp_path) == ["a"]


def test_a_directory_replaces_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["engine"]


def test_what_was_there_before_may_be_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root may remove everything, so the refusal is put in its place."""

    def rmtree(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "old"))

    target = tmp_path / "engine"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_bytes(b"new")
    assert names(target) == ["new"]
    (kept,) = [path for path in tmp_path.iterdir() if path != target]
    assert names(kept) == ["old"]
    assert f"{target} is replaced" in caplog.text
    assert f"{kept}: Permission denied" in caplog.text


def test_a_directory_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    target.write_text("a file")
    with atomic_path(target) as temporary:
        temporary.mkdir()
    assert target.is_dir()
    assert names(tmp_path) == ["engine"]


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    target.mkdir()
    with pytest.raises(OSError, match="engine"):
        write_atomically(target, b"x")
    assert target.is_dir()
    assert names(tmp_path) == ["engine"]


def test_write_atomically(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"


class PartByPart(io.RawIOBase):
    """Takes three bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:3])
        return len(data[:3])


def test_a_file_that_takes_parts_has_all_in_the_end() -> None:
    for data in (b"", b"ab", b"abc", b"abcdefgh"):
        file = PartByPart()
        write_all(file, data)  # type: ignore[arg-type]
        assert file.taken == data


@pytest.mark.parametrize("told", [0, 1, 7, 8, 9, 100])
def test_a_file_is_read_whole_whatever_size_it_had(told: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"12345678"):
        path.write_bytes(data)
        assert read_whole(path, told) == data


def test_a_disk_that_is_full_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256_from_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_required_files(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    require_file(tmp_path / "a", "checkpoint")
    with pytest.raises(UserError, match="no checkpoint at") as caught:
        require_file(tmp_path / "none", "checkpoint", "train one")
    assert caught.value.seen == "no such file"
    assert "Hint: train one" in str(caught.value)
    with pytest.raises(UserError, match="a folder"):
        require_file(tmp_path, "checkpoint")


def test_images_are_listed_without_hidden_ones(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a.jpg",
        "note.txt",
        ".hidden.png",
        "sub/c.tif",
        ".git/d.png",
        "sub/.e.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "sub/c.tif"]


def test_every_suffix_is_an_image(tmp_path: Path) -> None:
    for suffix in IMAGE_SUFFIXES:
        (tmp_path / f"{suffix[1:]}{suffix}").touch()
    assert len(image_paths(tmp_path)) == len(IMAGE_SUFFIXES)


def test_a_mask_that_predict_wrote_beside_its_image_is_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ("a.jpg", "b.png", "b.tif", "d/c.png", "alone_OUT.png", "a_OUT.jpg", "_OUT.png")
    masks = ("a_OUT.png", "b_OUT.png", "b.tif_OUT.png", "d/c_OUT.npy", "b.tif-2_OUT.png")
    for name in (*images, *masks):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING, "unetrt"):
        found = {str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)}
    assert found == set(images)
    assert "are no images: 5" in caplog.text, "none is left out in silence"


@pytest.mark.parametrize("mask", ["Masks/a.png", "annotations/training/a.png", "imgs/a_mask.gif"])
def test_masks_among_the_images_are_told(mask: str, tmp_path: Path) -> None:
    """A data set's own folder in place of that of its images."""
    folder = tmp_path / "masks"
    images = [folder / "imgs" / f"{name}.jpg" for name in "ab"]
    assert told_of_masks(images, folder) == ""
    found = told_of_masks([*images, folder / mask], folder)
    told = f"1 of 3 files below {folder} are named as masks are ({folder / mask}), and"
    assert found.startswith(told)
    assert told_of_masks([folder / mask], folder) == "", "they are what was asked for"


def test_an_array_beside_a_picture_of_its_name_is_none(tmp_path: Path) -> None:
    for name in ("a.png", "a.npy", "b.npy", "sub/a.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)]
    assert found == ["a.png", "b.npy", "sub/a.npy"]


def test_the_order_is_the_same_at_each_call(tmp_path: Path) -> None:
    for name in ("z/1.png", "a/2.png", "m.png", "a/10.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in image_paths(tmp_path)]
    assert found == ["m.png", "a/10.png", "a/2.png", "z/1.png"]


def test_folders_without_images_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.touch()
    cases = {tmp_path: "1 entries", file: "a file", tmp_path / "none": "no such folder"}
    for folder, seen in cases.items():
        with pytest.raises(UserError) as caught:
            image_paths(folder)
        assert seen in str(caught.value)


def below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in image_paths(folder)]


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for path in (folder / "own" / "a.png", elsewhere / "deep" / "b.png", tmp_path / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "0-own").symlink_to("own")
    (folder / "far").symlink_to(elsewhere)
    (folder / "far again").symlink_to(elsewhere)
    (folder / "own" / "up").symlink_to("..")
    (elsewhere / "deep" / "self").symlink_to(elsewhere)
    (folder / "above").symlink_to(tmp_path)
    (folder / "gone").symlink_to("nothing")
    (folder / ".hidden").symlink_to(elsewhere)
    assert below(folder) == ["far/deep/b.png", "own/a.png"]
    (tmp_path / "link").symlink_to(folder)
    assert below(tmp_path / "link") == ["far/deep/b.png", "own/a.png"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is put in its place."""
    real = os.scandir

    def scandir(folder: str) -> object:
        if Path(folder).name in ("closed", "lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    for name in ("open", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    monkeypatch.setattr(os, "scandir", scandir)
    assert below(tmp_path) == ["open/a.png"]
    (tmp_path / "open" / "closed").mkdir()
    with pytest.raises(UserError, match="cannot read the folder") as caught:
        image_paths(tmp_path)
    assert str(tmp_path / "open" / "closed") in caught.value.message
    assert caught.value.seen == "Permission denied"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 251 + ".png")
    write_atomically(target, b"whole")
    assert target.read_bytes() == b"whole"
    with pytest.raises(OSError, match="too long"):
        write_atomically(tmp_path / ("x" * 256), b"whole")
    assert names(tmp_path) == [target.name]
