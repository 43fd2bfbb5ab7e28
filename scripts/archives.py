"""Zip files as they were downloaded: whether they are whole, and what of them is data."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError)
"""What zipfile raises for an archive that is not whole."""


def is_cut(archive: Path) -> bool:
    """Whether it is there without its end, which is where a zip file lists what it holds."""
    return archive.is_file() and not zipfile.is_zipfile(archive)


def is_whole(archive: Path) -> bool:
    """Read every file of it, as unpacking will: each has a checksum."""
    try:
        with zipfile.ZipFile(archive) as content:
            return content.testzip() is None
    except DAMAGE:
        return False


def wanted_entries(content: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Files, without hidden ones and what macOS adds."""
    found = []
    for entry in content.infolist():
        path = PurePosixPath(entry.filename)
        if not (entry.is_dir() or path.name.startswith(".") or path.parts[0] == "__MACOSX"):
            found.append(entry)
    return found


def told_of_damage(*archives: Path) -> str:
    paths = " ".join(map(str, archives))
    return f"damaged: {paths}: the download was cut; remove it and run this again"
