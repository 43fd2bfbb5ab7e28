"""Addresses: what fsspec's stores hold is read, listed and written as files of this machine are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pytest

from tests.conftest import steel
from tests.runtime.encodings import encoded
from unetrt.contract.addresses import (
    files_below,
    files_matching,
    is_address,
    modified_ns,
    path_from_text,
    store_errors,
    written_ns,
)
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.files import image_paths, write_atomically
from unetrt.contract.images import read_image


@pytest.fixture(autouse=True)
def store() -> Iterator[Any]:
    """An empty store in memory."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


def test_what_has_no_scheme_is_a_local_path() -> None:
    for text in ("a/b.png", "/a", "c:\\x", "s3:/b"):
        path = path_from_text(text)
        assert isinstance(path, Path)
        assert not is_address(path)
    assert path_from_text("file:///tmp/a b.png") == Path("/tmp/a b.png")
    assert is_address(path_from_text("memory://b/a.png"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nostore://b/x", "an address of a kind"),
        ("gs://b/x", "pip install -c constraints.txt gcsfs"),
        ("github://a/b", "TypeError: "),
        ("zip://a::none.zip", "within an archive"),
    ],
)
def test_an_unknown_store_or_a_missing_package_is_said(text: str, told: str) -> None:
    if text.startswith("gs:") and "gs" in _installed():
        pytest.skip("gcsfs is installed here")
    with pytest.raises(UserError) as caught:
        path_from_text(text)
    assert told in str(caught.value)
    assert caught.value.hint


def _installed() -> set[str]:
    try:
        fsspec.filesystem("gs")
    except ImportError:
        return set()
    return {"gs"}


def test_a_picture_is_the_same_from_a_store(tmp_path: Path) -> None:
    suffix, data = encoded(0)
    local, remote = tmp_path / f"p{suffix}", path_from_text(f"memory://b/p{suffix}")
    write_atomically(local, data)
    write_atomically(remote, data)
    assert (read_image(local, 1) == read_image(remote, 1)).all()
    with pytest.raises(ImageError, match="no such file"):
        read_image(path_from_text("memory://b/gone.png"), 1)
    assert steel(0, 4, 4).shape == (4, 4, 1)


def test_images_below_an_address_are_listed_as_those_of_a_folder() -> None:
    for name in ("b.png", "a.JPG", "sub/c.tif", ".hidden.png", ".cache/d.png", "notes.txt"):
        write_atomically(path_from_text(f"memory://b/in/{name}"), b"x")
    write_atomically(path_from_text("memory://b/in2/e.png"), b"x")
    folder = path_from_text("memory://b/in")
    names = [str(path.relative_to(folder)) for path in image_paths(folder)]
    assert names == ["a.JPG", "b.png", "sub/c.tif"]
    assert PurePosixPath("sub/c.tif") in files_below(folder)
    found = files_matching(path_from_text("memory://b/**/*.tif"))
    assert [str(path) for path in found] == ["memory://b/in/sub/c.tif"]
    with pytest.raises(UserError, match="no images in memory://b/nothing"):
        image_paths(path_from_text("memory://b/nothing"))


def test_a_store_says_when_a_file_was_written() -> None:
    when = datetime(2026, 11, 1, tzinfo=UTC)
    assert modified_ns({"LastModified": when}) == round(when.timestamp()) * 10**9
    assert modified_ns({"mtime": 1.5}) == 1_500_000_000
    assert modified_ns({"size": 3}) == 0
    path = path_from_text("memory://b/a")
    write_atomically(path, b"x")
    assert abs(written_ns(path) / 1e9 - datetime.now(tz=UTC).timestamp()) < 60
    with pytest.raises(OSError, match="gone"):
        written_ns(path_from_text("memory://b/gone"))


def test_every_error_of_a_store_is_an_oserror() -> None:
    with pytest.raises(OSError, match="KeyError: 'no credentials'"), store_errors():
        raise KeyError("no credentials")
    with pytest.raises(FileNotFoundError), store_errors():
        raise FileNotFoundError("a")


def test_a_package_of_another_store_is_not_said_to_be_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise ImportError("SFTPFileSystem requires paramiko")

    monkeypatch.setattr("upath.UPath", missing)
    with pytest.raises(UserError) as caught:
        path_from_text("sftp://h/x")
    assert "paramiko" in str(caught.value.seen)
    assert "s3fs" not in str(caught.value)
