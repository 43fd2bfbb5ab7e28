"""The plan of a job: which images, and where each mask goes."""

from __future__ import annotations

import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from ..contract.addresses import MARK, files_matching, is_address, path_from_text
from ..contract.errors import UserError
from ..contract.files import image_paths
from ..contract.log import log

REFERENCE_SUFFIX = "_OUT"
"""Pytorch-UNet's predict.py writes IMAGE_OUT.png beside IMAGE."""

BESIDE = f"{REFERENCE_SUFFIX}.png"

STDIN = "-"
EXPECTED = "an image, a folder, a glob pattern, @LIST, an address or - for a list on standard input"


@dataclass(frozen=True)
class Task:
    """An image, its mask's path and its overlay's; None for what is not written."""

    source: Path
    output: Path | None
    overlay: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What is written for it."""
        return [path for path in (self.overlay, self.output) if path is not None]


@dataclass(frozen=True)
class _Input:
    """A file, and where it stands below the folder or pattern that named it."""

    path: Path
    relative: PurePath


def plan_tasks(
    inputs: Sequence[str],
    *,
    outputs: Sequence[Path] = (),
    output_dir: Path | None = None,
    save: bool = True,
    suffix: str = ".png",
    overlay_dir: Path | None = None,
) -> list[Task]:
    """Expand files, folders, globs and lists; name every output, no two alike.

    suffix: of the masks that are not named by `outputs`. overlay_dir: where overlays (JPEG) go.

    Raises UserError for what names no image, for outputs that do not match the inputs, and for a
    mask that would take the place of an image.
    """
    if outputs and output_dir:
        raise UserError("-o and --output-dir exclude each other", seen="both", expected="one")
    folders = [folder for folder in (output_dir, overlay_dir) if folder is not None]
    found = _expand(inputs, folders, keep_outputs=output_dir is not None)
    masks: Sequence[Path | None] = [None] * len(found)
    if save and outputs:
        masks = _named_outputs(found, outputs)
    elif save and output_dir is not None:
        masks = _tree_outputs(found, output_dir, suffix)
    elif save:
        masks = _reference_outputs(found, suffix)
    overlays = _tree_outputs(found, overlay_dir, ".jpg") if overlay_dir else [None] * len(found)
    tasks = [Task(item.path, *paths) for item, *paths in zip(found, masks, overlays, strict=True)]
    _check_sources_kept(tasks)
    return tasks


def _check_sources_kept(tasks: Sequence[Task]) -> None:
    sources = set(_located(task.source for task in tasks))
    for output in _located(path for task in tasks for path in task.files):
        if output in sources:
            raise UserError(
                f"a mask or an overlay would replace the image {output}",
                seen="an output that is an input too",
                expected="masks beside the images, or in a folder of their own",
                hint="--output-dir DIR   with a folder that holds none of the images",
            )


def _located(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path as one spelling: links of its folder followed, every folder asked once."""
    folders: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        yield folders[path.parent] / path.name


def _reference_outputs(found: list[_Input], suffix: str) -> list[Path]:
    """STEM_OUT.png beside the image; a later image of the same stem gets STEM.EXT_OUT.png."""
    taken: set[Path] = set()
    outputs = []
    for item, place in zip(found, _located(item.path for item in found), strict=True):
        names = (stem + REFERENCE_SUFFIX + suffix for stem in _stems(place))
        name = next(name for name in names if place.with_name(name) not in taken)
        taken.add(place.with_name(name))
        outputs.append(item.path.with_name(name))
    return outputs


def _named_outputs(found: list[_Input], outputs: Sequence[Path]) -> list[Path]:
    if len(found) != len(outputs):
        raise UserError(
            "-o takes one file for each image",
            seen=f"{len(outputs)} files for {len(found)} images",
            hint="--output-dir DIR   names them itself",
        )
    if len(set(_located(outputs))) < len(outputs):
        raise UserError(
            "-o names one file twice",
            seen=" ".join(map(str, outputs)),
            expected="a file of its own for each image",
        )
    return list(outputs)


def _tree_outputs(found: list[_Input], output_dir: Path, suffix: str) -> list[Path]:
    """<tree>/<stem>.png; a later input of the same stem gets <stem>.<ext>.png, then a number."""
    folders = {item.relative.parent for item in found}
    taken = {output_dir / name for folder in folders for name in (folder, *folder.parents)}
    outputs, renamed = [], 0
    for item in found:
        names = (item.relative.with_name(stem + suffix) for stem in _stems(item.relative))
        output = output_dir / next(n for n in names if output_dir / n not in taken)
        renamed += output.name != item.relative.stem + suffix
        taken.add(output)
        outputs.append(output)
    if renamed:
        log.warning("inputs that share a stem with another: %d, named STEM.EXT%s", renamed, suffix)
    return outputs


def _stems(path: PurePath) -> Iterable[str]:
    """What a mask may be called: after the stem, after the whole name, then with a number."""
    yield path.stem
    yield path.name
    for number in itertools.count(2):
        yield f"{path.name}-{number}"


def _expand(inputs: Sequence[str], outputs: Sequence[Path], keep_outputs: bool) -> list[_Input]:
    """Every image once, in the order given."""
    items = [item for text in inputs for item in _expand_one(text, outputs, keep_outputs)]
    found: dict[Path, _Input] = {}
    for item, path in zip(items, _located(item.path for item in items), strict=True):
        found.setdefault(path, item)
    if not found:
        raise UserError("no input images", seen=" ".join(inputs) or "nothing", expected=EXPECTED)
    return list(found.values())


def _expand_one(text: str, outputs: Sequence[Path], keep_outputs: bool) -> list[_Input]:
    if text == STDIN:
        return _expand_lines(_standard_input(), "standard input")
    path = path_from_text(text)
    if is_address(path):
        return _expand_address(path, outputs)
    if path.is_dir():
        images = image_paths(path)
        if not keep_outputs:  # masks of an earlier run lie beside their images
            images = [image for image in images if not image.name.endswith(BESIDE)]
        items = [_Input(image, image.relative_to(path)) for image in images]
        return _without_outputs(items, path, outputs)
    if path.exists():
        return [_Input(path, PurePath(path.name))]
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


def _expand_address(path: Path, outputs: Sequence[Path]) -> list[_Input]:
    try:
        if glob.has_magic(str(path)):
            root, images = _fixed_address(path), files_matching(path)
        elif path.is_file():
            root, images = path.parent, [path]
        else:
            root, images = path, image_paths(path)
    except OSError as error:
        raise UserError(f"cannot read {path}", seen=error, expected=EXPECTED) from error
    if not images:
        raise UserError(f"no image matches {path}", seen="0 files")
    items = [_Input(image, PurePosixPath(str(image.relative_to(root)))) for image in images]
    folders = [folder for folder in outputs if is_address(folder) and folder != root]
    return [item for item in items if not any(f in item.path.parents for f in folders)]


def _fixed_address(pattern: Path) -> Path:
    """The folder above the first part of an address that is a pattern."""
    return next(path for path in pattern.parents if not glob.has_magic(str(path)))


def _expand_list(path: Path) -> list[_Input]:
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
    return os.fsdecode(sys.stdin.buffer.read())  # a name of any bytes, as the system has it


def _expand_lines(text: str, what: str) -> list[_Input]:
    """One path a line, relative to the working folder; their own folders are kept."""
    if "\0" in text:
        raise UserError(f"{what} separates names by NUL", expected="one path a line")
    files = [_listed_file(line) for line in text.split("\n") if line.strip()]
    for file in files:
        if file.name in ("", ".."):
            raise UserError(f"{what} names a folder", seen=file, expected="images")
    return [_Input(file, _inside(file)) for file in files]


def _listed_file(line: str) -> Path:
    """Spaces around a name are its own where such a file is there."""
    line = line.removesuffix("\r")
    if MARK in line:
        return path_from_text(line.strip())
    stripped = line.strip()
    return Path(line) if line == stripped or Path(line).exists() else Path(stripped)


def _without_outputs(items: list[_Input], root: Path, outputs: Sequence[Path]) -> list[_Input]:
    """Leave out what an earlier run has written below `root`, in an output folder there."""
    for folder in (output.resolve() for output in outputs if not is_address(output)):
        if root.resolve() in folder.parents:
            places = _located(item.path for item in items)
            pairs = zip(items, places, strict=True)
            items = [item for item, place in pairs if folder not in place.parents]
    return items


def _expand_glob(pattern: str, outputs: Sequence[Path]) -> list[_Input]:
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(
            f"no image matches {pattern}",
            seen="0 files",
            expected="a pattern that finds some",
            hint="quote the pattern; ** goes through all folders, * through one",
        )
    root = Path(*_fixed_parts(Path(pattern)))
    items = [_Input(file, _inside(file.relative_to(root))) for file in files]
    return _without_outputs(items, root, outputs)


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
