"""Where images are: files, folders, globs, lists, standard input and addresses."""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from ..contract.addresses import MARK, files_matching, is_address, path_from_text, store_errors
from ..contract.errors import UserError
from ..contract.files import (
    folders_below,
    image_addresses,
    image_paths,
    names_below,
    without_outputs,
)
from ..contract.log import log
from .address_plan import masks_of
from .entries import JOURNAL_FOLDER, written_below

STDIN = "-"
EXPECTED = "an image, a folder, a glob pattern, @LIST, an address or - for a list on standard input"


@dataclass(frozen=True)
class Input:
    """A file, and where it stands below the folder or pattern that named it."""

    path: Path
    relative: PurePath


def expand_inputs(inputs: Sequence[str], outputs: Sequence[Path]) -> list[Input]:
    """Every image once, in the order given."""
    items = [item for text in inputs for item in _expand_one(text, outputs)]
    found: dict[str, Input] = {}
    for item, path in zip(items, located(item.path for item in items), strict=True):
        found.setdefault(path, item)
    if not found:
        raise UserError("no input images", seen=" ".join(inputs) or "nothing", expected=EXPECTED)
    return list(found.values())


def _expand_one(text: str, outputs: Sequence[Path]) -> list[Input]:
    if text == STDIN:
        return _expand_lines(_standard_input(), "standard input")
    if not text:  # pathlib takes it for the working folder
        raise UserError(
            "an input without a name", seen='-i ""', expected=EXPECTED, hint="is a variable unset?"
        )
    path = path_from_text(text)
    if is_address(path):
        return _expand_address(path, outputs)
    if os.path.isdir(path):  # noqa: PTH112  False for what may not be looked at
        return _expand_folder(path, outputs)
    if _may_be_there(path):
        return [Input(path, PurePath(path.name))]
    if text.startswith("@"):
        return _expand_list(path_from_text(text[1:]))
    if glob.has_magic(text):
        return _expand_glob(text, outputs)
    raise UserError(
        f"no image at {text}",
        seen="no such file or folder",
        expected=EXPECTED,
        hint="a path is read from the working folder, ** in a glob goes through all folders",
    )


def _expand_folder(folder: Path, outputs: Sequence[Path]) -> list[Input]:
    items = [Input(image, image.relative_to(folder)) for image in image_paths(folder)]
    return _without_outputs(items, folder, outputs)


def images_below(folder: Path) -> list[Path]:
    """As image_paths; without the masks and overlays that jobs have written there."""
    found = [item.path for item in _expand_folder(folder, ())]
    if not found:
        seen = "masks and overlays that jobs wrote"
        raise UserError(f"no images in {folder}", seen=seen, expected="what they were made of")
    return found


def _may_be_there(path: Path) -> bool:
    """Also where nobody may look: to read it says why, and costs this image alone."""
    with suppress(PermissionError):
        return path.exists()
    return True


def _expand_address(path: Path, outputs: Sequence[Path]) -> list[Input]:
    jobs: list[Path] = []
    try:
        if _is_pattern(path):
            root, images = _fixed_address(path), without_outputs(files_matching(path))
        elif _is_file(path):
            root, images = path.parent, [path]
        else:
            root, (images, jobs) = path, image_addresses(path, JOURNAL_FOLDER)
    except OSError as error:
        raise UserError(f"cannot read {path}", seen=error, expected=EXPECTED) from error
    if not images:
        raise UserError(f"no image matches {path}", seen="0 files")
    items = [Input(image, PurePosixPath(str(image.relative_to(root)))) for image in images]
    # As for folders here: where the root lies in an output folder, it is meant.
    meant = (root, *root.parents)
    folders = [folder for folder in outputs if is_address(folder) and folder not in meant]
    items = [item for item in items if not any(f in item.path.parents for f in folders)]
    written = masks_of(plan for plan in jobs if plan.parent.parent not in (root, *folders))
    return _without(written, [(str(item.path), item) for item in items], root)


def _is_pattern(path: Path) -> bool:
    """As for files here, what is there by that name is meant first."""
    if not glob.has_magic(str(path)):
        return False
    with store_errors():
        return not path.exists()


def _is_file(path: Path) -> bool:
    with store_errors():
        return path.is_file()


def _fixed_address(pattern: Path) -> Path:
    """The folder above the first part of an address that is a pattern."""
    return next(path for path in pattern.parents if not glob.has_magic(str(path)))


def _expand_list(path: Path) -> list[Input]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the list {path}", seen=error, expected="UTF-8 text, an image a line"
        ) from error
    return _expand_lines(text, f"the list {path}")


def _standard_input() -> str:
    if sys.stdin is None:
        raise UserError("standard input is closed", expected="a list of images, one a line")
    data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    return os.fsdecode(data)  # a name of any bytes, as the system has it


def _expand_lines(text: str, what: str) -> list[Input]:
    """One path a line, relative to the working folder; their own folders are kept."""
    if "\0" in text:
        raise UserError(f"{what} separates names by NUL", expected="one path a line")
    files = [_listed_file(line) for line in text.split("\n") if line.strip()]
    for file in files:
        if file.name in ("", ".."):
            raise UserError(f"{what} names a folder", seen=file, expected="images")
    return [Input(file, _inside(file)) for file in files]


def _listed_file(line: str) -> Path:
    """Spaces around a name are its own where such a file is there."""
    line = line.removesuffix("\r")
    if MARK in line:
        return path_from_text(line.strip())
    stripped = line.strip()
    its_own = line == stripped or os.path.lexists(line)  # no error for a long name
    return Path(line if its_own else stripped)


def _without_outputs(items: list[Input], root: Path, outputs: Sequence[Path]) -> list[Input]:
    """Leave out what this job's earlier runs, and other jobs, have written below `root`."""
    place = root.resolve()
    placed = list(zip(located(item.path for item in items), items, strict=True))
    for folder in (output.resolve() for output in outputs if not is_address(output)):
        # A folder elsewhere may be linked to from here; where the root lies in it, it is meant.
        if folder != place and folder not in place.parents:
            ours = inside(folder)
            placed = [(path, item) for path, item in placed if not ours(path)]
    return _without(written_below(str(place), [path for path, _ in placed]), placed, place)


def _without(written: set[str], placed: list[tuple[str, Input]], root: Path) -> list[Input]:
    kept = [item for path, item in placed if path not in written]
    if len(kept) < len(placed):
        told = "masks and overlays that other jobs wrote below %s are no images: %d"
        log.warning(told, root, len(placed) - len(kept))
    return kept


def _expand_glob(pattern: str, outputs: Sequence[Path]) -> list[Input]:
    path = Path(pattern)
    if "**" in path.parts and ".." in path.parts[len(_fixed_parts(path)) :]:
        raise UserError(
            f"cannot follow {pattern}",
            seen=".. after ** or another part that is a pattern",
            expected="a pattern that goes down only",
            hint="put what is before .. into the folder that the pattern begins with",
        )
    found = [file for file in _shortest(_matching(path)) if os.path.isfile(file)]  # noqa: PTH113
    files = without_outputs(found)
    if not files:
        raise UserError(
            f"no image matches {pattern}",
            seen="0 files",
            expected="a pattern that finds some",
            hint="quote the pattern; ** goes through all folders, * through one",
        )
    root = Path(*_fixed_parts(path))
    items = [Input(file, _inside(file.relative_to(root))) for file in files]
    return _without_outputs(items, root, outputs)


def _matching(pattern: Path) -> Iterator[Path]:
    """What a pattern names, each folder read once.

    Python's own glob leaves out the folders that may not be read, and its ** goes round a loop of
    links forty times, through two of them for ever.
    """
    fixed = _fixed_parts(pattern)
    root, wanted = Path(*fixed), pattern.parts[len(fixed) :]
    if not root.is_dir():
        return
    if "**" not in wanted:
        yield from _matching_parts(root, wanted)
        return
    for folder, names in folders_below(root, hidden=True).items():
        parts = folder.relative_to(root).parts
        yield from (folder / name for name in names if _matches((*parts, name), wanted))


def _matching_parts(folder: Path, wanted: Sequence[str]) -> Iterator[Path]:
    """Of a pattern whose every part is one folder's or file's name."""
    part, rest = wanted[0], wanted[1:]
    if glob.has_magic(part):
        found = [folder / name for name in names_below(folder) if _matches((name,), (part,))]
    else:
        found = [folder / part]
    for path in found:
        if not rest:
            yield path
        elif path.is_dir():
            yield from _matching_parts(path, rest)


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """As glob has it: ** is any number of folders, and a hidden name is asked for by its dot."""
    if not wanted:
        return not parts
    if wanted[0] == "**" and _matches(parts, wanted[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not wanted[0].startswith(".")):
        return False
    if wanted[0] == "**":
        return _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _shortest(paths: Iterable[Path]) -> list[Path]:
    """Each file once, sorted: links give one several spellings."""
    spellings = sorted(paths, key=lambda path: (len(path.parts), path))
    found: dict[str, Path] = {}
    for place, path in zip(located(spellings), spellings, strict=True):
        found.setdefault(place, path)
    return sorted(found.values())


def input_roots(inputs: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The folders that are read, each with the pattern that a file's name has to match."""
    for path in (path_from_text(text) for text in inputs if text != STDIN):
        if is_address(path):
            pattern = _is_pattern(path)
            yield (_fixed_address(path), path.name) if pattern else (path, "*")
        elif path.is_dir():
            yield path, "*"
        elif not path.exists() and glob.has_magic(str(path)):
            yield Path(*_fixed_parts(path)), path.name


def _fixed_parts(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _inside(path: Path) -> PurePath:
    """A relative path that cannot leave the output folder."""
    kept = [part for part in path.parts if part not in ("..", ".", path.anchor)]
    return PurePath(*kept)


def real_folder(folder: Path) -> Path:
    """Absolute, its links followed; one that leads round in a loop is left as it is."""
    return folder.resolve() if is_address(folder) else Path(os.path.realpath(folder))


def located(paths: Iterable[Path], folders: dict[str, str] | None = None) -> Iterator[str]:
    """Each path as one spelling: links of its folder followed, every folder asked once.

    Text: a plan of millions compares these, which for paths takes ten times as long.
    folders: what is known of them, for who asks for one path after the other.
    """
    folders = {} if folders is None else folders
    for path in paths:
        folder, name = os.path.split(str(path))
        if folder not in folders:
            folders[folder] = str(real_folder(path.parent))
        yield os.path.join(folders[folder], name)  # noqa: PTH118  text, as said


def inside(root: Path) -> Callable[[str], bool]:
    """Whether what `located` has given lies below `root`; every folder is asked once."""
    known: dict[str, bool] = {}

    def is_inside(path: str) -> bool:
        folder = os.path.split(path)[0]
        if folder not in known:
            place = path_from_text(folder)
            known[folder] = root == place or root in place.parents
        return known[folder]

    return is_inside
