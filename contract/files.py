"""Files that are whole or not there, and the images a folder holds."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from .addresses import is_address, keys_below, store_errors
from .durable import replace_durably
from .errors import UserError, as_word
from .log import log

UNREAD = "lost+found"
"""What a file system keeps for itself, which nobody may read."""

BEST = "best.pth"
"""A training's best checkpoint, in its folder."""
ARRAY = ".npy"
OVERLAY_SUFFIX = ".jpg"
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"),
        *(".gif", ARRAY),
    }
)

MASK_FOLDERS = frozenset({"mask", "masks", "label", "labels", "annotation", "annotations"})
"""What data sets call the folder of their masks, in small letters."""

REFERENCE_SUFFIX = "_OUT"
"""Pytorch-UNet's predict.py writes IMAGE_OUT.png beside IMAGE."""

_OUTPUT = re.compile(rf"(.+?)(-\d+)?{REFERENCE_SUFFIX}\.(?:png|npy)", re.DOTALL)


@contextmanager
def atomic_path(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target`: renamed onto it at the end, removed on any error.

    A directory made there replaces `target` as a whole.
    durable: a file is on the disk at the end, and whole after a power cut at any moment. It waits
    for the disk, so masks are not written this way.
    """
    temporary = _temporary_of(target)
    try:
        yield temporary
        if temporary.is_dir():
            _replace_directory(temporary, target)
        elif durable:
            replace_durably(temporary, target)
        else:
            temporary.replace(target)
    finally:
        _remove(temporary)


def _temporary_of(target: Path) -> Path:
    name = f".{temporary_key(target.name)}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    return target.with_name(name)


def temporary_key(name: str) -> str:
    """What stands for `name` in a temporary's: the name itself may be as long as one can be."""
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def _replace_directory(new: Path, target: Path) -> None:
    """Two renames: rename(2) does not replace a directory that holds files."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_name(new.name + ".old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    try:
        _remove(old)
    except OSError as error:  # another user's files, or on NFS one that a server has open
        told = "%s is replaced; what it was before cannot be removed and is in %s: %s"
        log.warning(told, target, old, error.strerror)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(target: Path, data: bytes) -> None:
    """As atomic_path, in few calls: beside busy threads each one waits for the interpreter."""
    if is_address(target):  # a store puts a file whole or not at all
        with store_errors():
            target.write_bytes(data)
        return
    temporary = _temporary_of(target)
    try:
        with temporary.open("wb", buffering=0) as file:
            write_all(file, data)
        os.replace(temporary, target)  # noqa: PTH105  a Path's own takes longer
    except BaseException:
        _remove(temporary)
        raise


def write_all(file: IO[bytes], data: bytes) -> None:
    """Into an unbuffered file, which may take a part at a time."""
    view = memoryview(data)
    while view:  # a full disk may take a part; the next write then says why
        view = view[file.write(view) :]


def read_whole(path: Path, size: int) -> bytes:
    """All bytes of a file that had `size` when it was looked at, in few calls, see above."""
    with path.open("rb", buffering=0) as file:
        data = file.read(size + 1)  # nothing more where it is the size: no call to see the end
        while len(data) != size and (more := file.read()):
            data += more
    return data


def sha256_from_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hint_of_run(folder: Path) -> str | None:
    """For a training's folder in place of a model; None for another one."""
    best = folder / BEST
    return f"{as_word(best)}   is its best checkpoint" if best.is_file() else None


def require_file(path: Path, what: str, hint: str | None = None) -> None:
    """Raise UserError unless `path` is a file; `what` names its part ("checkpoint")."""
    if not path.is_file():
        seen = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"no {what} at {path}", seen=seen, expected=f"a {what} file", hint=hint)


def require_place(path: Path, name: str) -> None:
    """Raise UserError where no file can be written; name: what one in a folder might be called."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder",
            seen=path,
            expected="the name of a file to write",
            hint=f"-o {as_word(path / name)}",
        )
    if not path.parent.is_dir():
        raise UserError(
            f"no folder {path.parent} to write to",
            seen=path,
            expected="a file in a folder that is there",
            hint=f"mkdir -p {as_word(path.parent)}",
        )


def image_paths(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted; hidden files and folders are passed over.

    Linked folders are read too, each folder once: by its own path where it has one below `folder`.
    An array (.npy) beside a picture of the same stem is what somebody made of it, and no image.
    Nor is a mask that predict has written beside its image (X_OUT.png).
    Raises UserError when the folder is missing or holds no image, or a folder cannot be read.
    """
    if is_address(folder):
        return image_addresses(folder)[0]
    if not folder.is_dir():
        seen = "a file" if folder.exists() else "no such folder"
        raise UserError(f"no folder of images at {folder}", seen=seen)
    found = _without_twins(
        [
            root / name
            for root, names in sorted(folders_below(folder).items())
            for name in sorted(names)
            if _names_image(PurePath(name))
        ]
    )
    found = without_outputs(found)
    _require_images(found, folder, sum(1 for _ in folder.iterdir()))
    return found


def told_of_masks(images: Sequence[Path], folder: Path) -> str:
    """What to say where some of the images below `folder`, not all, are named as masks are; or ''.

    A folder with pictures and masks in it is a whole data set: its masks are judged as images.
    """
    depth = len(folder.parts)
    found = [
        path
        for path in images
        if path.stem.lower().endswith("_mask")
        or MASK_FOLDERS & {part.lower() for part in path.parts[depth:-1]}
    ]
    if not found or len(found) == len(images):
        return ""
    return (
        f"{len(found)} of {len(images)} files below {folder} are named as masks are ({found[0]}), "
        "and are taken for images: name the folder of the images alone"
    )


def without_outputs(found: list[Path]) -> list[Path]:
    """X_OUT.png goes where an image X.jpg stands, a.jpg_OUT.png and a.jpg-2_OUT.png where a.jpg."""
    if not any(REFERENCE_SUFFIX in path.name for path in found):
        return found
    names = {str(path) for path in found}
    stems = {str(path.parent / path.stem) for path in found}
    kept = []
    for path in found:
        parts = _OUTPUT.fullmatch(str(path))
        base, number = (parts[1], parts[2] or "") if parts else ("", "")
        if not (base + number in stems or base + number in names or base in names):
            kept.append(path)
    if len(kept) < len(found):
        log.warning(
            "masks that predict wrote beside their images (%s) are no images: %d",
            f"X{REFERENCE_SUFFIX}.png",
            len(found) - len(kept),
        )
    return kept


def folders_below(folder: Path, hidden: bool = False) -> dict[Path, list[str]]:
    """Every folder with the names of its files, each once; links are followed last.

    Raises UserError for a folder that cannot be read.
    """
    found: dict[Path, list[str]] = {}
    # A link to what holds the folder is a loop.
    seen = {_identity(above) for above in folder.resolve().parents}
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            links += _walk(start, found, seen, hidden)
        waiting = sorted(links)
    return found


def names_below(folder: Path) -> list[str]:
    """Of all that lies in a folder, sorted. Raises UserError where it cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  names alone
    except OSError as error:
        _refuse_unread(error)
        return []


def _walk(
    start: Path, found: dict[Path, list[str]], seen: set[tuple[int, int]], hidden: bool
) -> list[Path]:
    """Add the folders below `start` to `found`; return the links to folders among them."""
    links: list[Path] = []
    for root, folders, names in os.walk(start, onerror=_refuse_unread):
        identity = _identity(root)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        found[Path(root)] = names
        folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
        links += [path for name in folders if (path := Path(root, name)).is_symlink()]
    return links


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116  a string, as os.walk has it: there may be many
    return status.st_dev, status.st_ino


def _refuse_unread(error: OSError) -> None:
    """A folder that cannot be read would be images left out in silence."""
    if PurePath(error.filename).name != UNREAD:
        raise UserError(
            f"cannot read the folder {error.filename}",
            seen=error.strerror,
            expected="folders of images that may be listed",
            hint=f"chmod u+rx {as_word(Path(error.filename))}   or name the folders beside it",
        ) from error


def image_addresses(folder: Path, journals: str | None = None) -> tuple[list[Path], list[Path]]:
    """image_paths of an address; and from the same listing, what lies in folders of that name."""
    try:
        keys = sorted(key for key in keys_below(folder) if not key.endswith("/"))
    except OSError as error:
        raise UserError(
            f"cannot list {folder}", seen=error, expected="a folder of images"
        ) from error
    names = [PurePosixPath(key) for key in keys]
    for key, name in zip(keys, names, strict=True):
        if _names_image(name) and (key != str(name) or name.is_absolute()):
            _refuse_key(key, folder)
    found = _without_twins([folder / name for name in sorted(names) if _names_image(name)])
    found = without_outputs(found)
    _require_images(found, folder, len(names))
    return found, [folder / name for name in names if name.parent.name == journals]


def _refuse_key(key: str, folder: Path) -> None:
    """For a path it is another file, whose mask it would share: it would be left out in silence."""
    raise UserError(
        f"a file below {folder} has a name that no path has",
        seen=key,
        expected="names without // and ./ in them",
        hint="rename it, or name the folders beside it",
    )


def _without_twins(found: list[Path]) -> list[Path]:
    if not any(path.name.lower().endswith(ARRAY) for path in found):
        return found
    pictures = {path.with_suffix("") for path in found if path.suffix.lower() != ARRAY}
    kept = [p for p in found if p.suffix.lower() != ARRAY or p.with_suffix("") not in pictures]
    if len(kept) < len(found):
        log.warning(
            "arrays beside pictures of their names are no images: %d", len(found) - len(kept)
        )
    return kept


def _names_image(name: PurePath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _require_images(found: Sequence[Path], folder: Path, entries: int) -> None:
    if not found:
        raise UserError(
            f"no images in {folder}",
            seen=f"{entries} entries, none an image",
            expected=" ".join(sorted(IMAGE_SUFFIXES)),
        )
