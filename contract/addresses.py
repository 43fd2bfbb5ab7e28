"""Files at addresses (s3://…, gs://…): fsspec's stores behind pathlib's interface.

What stands for such a file is a UPath. It is no pathlib.Path, but has all of it that is used of
images and masks here, and is passed on as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, cast

from .errors import UserError, first_line
from .modules import INSTALL, import_module

MARK = "://"

_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
}
"""Kind of address → what brings its store."""

_ARCHIVES = ("zip", "tar", "libarchive")
_CACHES = ("simplecache",)
"""fsspec's kinds of addresses around another one: those that hide its names, those that do not."""

_WRITTEN = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What fsspec's stores call the time at which a file was written."""


def path_from_text(text: str) -> Path:
    """A local path; a UPath for an address. UserError: its store cannot be opened."""
    if MARK not in text:
        return Path(text)
    upath = import_module("upath")
    _refuse_archive(text)
    try:
        path = upath.UPath(text)
        path.fs  # noqa: B018  asks for the package of this kind of store
    except ImportError as error:
        raise UserError(
            f"cannot reach {text}",
            seen=error,
            expected="the fsspec package of its kind",
            hint=_package_hint(text),
        ) from error
    except Exception as error:  # each store's constructor has errors of its own kinds
        raise UserError(
            f"cannot reach {text}",
            seen=f"{type(error).__name__}: {first_line(error)}",
            expected="an address of a kind that fsspec knows, as s3://BUCKET/FOLDER",
            hint="s3://, gs:// or az://, or a folder of this machine",
        ) from error
    return Path(path.path) if path.protocol in ("file", "local") else cast(Path, path)


def _refuse_archive(text: str) -> None:
    """Files in an archive have addresses from which neither folder nor name can be told."""
    outer = text.partition(MARK)[0].partition("::")[0]
    if outer in _ARCHIVES or ("::" in text and outer not in _CACHES):
        raise UserError(
            f"cannot reach {text}",
            seen="an address within another one, or within an archive",
            expected="an address of files, as s3://BUCKET/FOLDER, or simplecache:: before one",
            hint="unpack the archive; of tar files docs/scale.md says how a job takes many",
        )


def _package_hint(text: str) -> str:
    """Of other kinds than these, the message of fsspec names the packages."""
    package = _PACKAGES.get(text.partition(MARK)[0].rpartition("::")[2])
    return INSTALL[package] if package else "install the packages that are named above"


def is_address(path: Path) -> bool:
    return not isinstance(path, Path)


def files_below(folder: Path) -> dict[PurePosixPath, dict[str, Any]]:
    """Name below an address → what its store says of the file, in one listing. OSError."""
    return {PurePosixPath(key): facts for key, facts in keys_below(folder).items()}


def keys_below(folder: Path) -> dict[str, dict[str, Any]]:
    """files_below, the names as the store has them: a//b and a/b are two."""
    store, root = store_of(folder)
    with store_errors():
        store.invalidate_cache()
        found = store.find(root, detail=True)
    prefix = root.rstrip("/") + "/"
    return {
        key.removeprefix(prefix): facts for key, facts in found.items() if key.startswith(prefix)
    }


def files_matching(pattern: Path) -> list[Path]:
    """The files at addresses that a glob pattern names, sorted. OSError."""
    store, name = store_of(pattern)
    with store_errors():
        found = sorted(store.glob(name, detail=True).items())
    names = [store.unstrip_protocol(name) for name, facts in found if facts["type"] == "file"]
    return [path_from_text(name) for name in names]


def modified_ns(facts: dict[str, Any]) -> int:
    """When a store says that a file was written; 0 where it does not say."""
    when = next((facts[name] for name in _WRITTEN if name in facts), 0)
    seconds = when.timestamp() if isinstance(when, datetime) else when
    return round(seconds * 1e9) if isinstance(seconds, int | float) else 0


def written_ns(path: Path) -> int:
    """modified_ns of one file, here or at an address. OSError: it has gone."""
    if not is_address(path):
        return path.stat().st_mtime_ns
    store, name = store_of(path)
    with store_errors():
        return modified_ns(store.info(name))


def store_of(path: Path) -> tuple[Any, str]:
    """The fsspec file system of an address, and the name in it."""
    address: Any = path
    return address.fs, address.path


@contextmanager
def store_errors() -> Iterator[None]:
    """Every store has errors of its own kinds: those that are no OSError become one."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
