"""Lay out the NEU_Seg repository, a folder or its zip, for training: imgs and masks, train and val.

Its test pictures are mostly rotations of its training pictures, so they are no test of anything
new. --scenes takes a table of stem and scene; the scenes of every tenth go to val, whole.
Needs unetrt.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from archives import is_whole, told_of_damage, wanted_entries

from unetrt.contract.errors import ImageError
from unetrt.contract.files import atomic_path
from unetrt.contract.images import image_size
from unetrt.contract.masks import read_mask

SOURCES = {"tr": "training", "te": "test"}
"""Prefixes of the new names: both folders of the repository use the same numbers."""

KINDS = {"images": (".jpg", ".jpeg"), "annotations": (".png",)}
"""Folders of the repository, and how files in them end, in small letters."""

CLASSES = 4
"""Background and three kinds of defects: the values of masks."""

EVERY = 10
"""One scene of so many goes to val."""

PARTS = ("train", "val")

Pair = tuple[str, Path, Path]


class TableError(Exception):
    """The table of scenes does not say what is needed."""


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the data is not whole, 2 the request cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="its folder or zip: images/, annotations/")
    parser.add_argument("--out", type=Path, default=Path("data/neu_seg"), metavar="DIR")
    parser.add_argument(
        "--scenes", type=Path, metavar="CSV",
        help="columns stem (tr000001, te000001 …) and scene: pictures of a scene stay together",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    args = parser.parse_args(argv)
    full = [part for part in PARTS if _names(args.out / part)]
    if len(full) == len(PARTS):
        return _fail(f"{args.out / full[0]} holds files already: name another --out")
    if args.source.is_file() and not is_whole(args.source):
        return _fail(told_of_damage(args.source))
    with ExitStack() as stack:
        source = args.source
        if source.is_file():
            source = Path(stack.enter_context(TemporaryDirectory()))
            _unpack(args.source, source)
        return _lay_out(args, source, full)


def _lay_out(args: argparse.Namespace, source: Path, full: list[str]) -> int:
    """full: the parts of --out that hold files already."""
    pairs, alone = _pairs(source)
    if not pairs:
        return _fail(f"{args.source} holds no images/training and annotations/training")
    if alone:
        sys.stderr.write(f"{len(alone)} files without a partner: {', '.join(alone[:5])}\n")
        return 1
    wrong = [told for _, image, mask in pairs if (told := _told_of_pair(image, mask))]
    if wrong:
        listed = "\n".join(wrong[:5])
        sys.stderr.write(f"{len(wrong)} of {len(pairs)} pairs cannot be used:\n{listed}\n")
        return 1
    try:
        parts = _split(pairs, _scenes(args.scenes, pairs) if args.scenes else {})
    except TableError as error:
        return _fail(f"{args.scenes}: {error}")
    empty = [part for part, members in parts.items() if not members]
    if empty:
        return _fail(f"{empty[0]} would have no pairs: {len(pairs)} pairs, {_rule(args.scenes)}")
    other = [part for part in full if _names(args.out / part) != _planned(parts[part])]
    if other:
        return _fail(f"{args.out / other[0]} holds files already: name another --out")
    for part, members in parts.items():
        sys.stdout.write(f"{args.out / part}: {len(members)} pairs\n")
        if not args.dry_run and part not in full:
            _copy(members, args.out / part)
    if not args.scenes:
        sys.stdout.write("val is the source's test folder, which shares scenes with train\n")
    return 0


def _unpack(archive: Path, folder: Path) -> None:
    """The pictures alone, wherever it holds the two folders; by their names, so nowhere else."""
    with zipfile.ZipFile(archive) as content:
        for entry in wanted_entries(content):
            kind, part, name = ("", "", *PurePosixPath(entry.filename).parts)[-3:]
            if kind in KINDS and part in SOURCES.values():
                path = folder / kind / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(entry) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)


def _told_of_pair(image: Path, mask: Path) -> str:
    """What is wrong with its sizes or the mask's values; or nothing."""
    name = f"{image.parent.name}/{image.stem}"
    try:
        size, pixels = image_size(image), read_mask(mask)
    except ImageError as error:
        return f"{name}: {error.reason}"
    if pixels.shape != size:
        sides = [f"{height}×{width}" for height, width in (size, pixels.shape[:2])]
        colours = " in colours" if pixels.ndim > 2 else ""
        return f"{name}: the image has {sides[0]} pixels, the mask {sides[1]}{colours}"
    if pixels.max() >= CLASSES:
        return f"{name}: the mask holds the value {pixels.max()}, expected 0 to {CLASSES - 1}"
    return ""


def _pairs(source: Path) -> tuple[list[Pair], list[str]]:
    """Give (new stem, image, mask) of both folders, and the names that have no partner."""
    pairs, alone = [], []
    for prefix, folder in SOURCES.items():
        images, masks = (_by_stem(source / kind / folder, kind) for kind in KINDS)
        alone += [f"{folder}/{stem}" for stem in sorted(images.keys() ^ masks.keys())]
        both = sorted(images.keys() & masks.keys())
        pairs += [(prefix + stem, images[stem], masks[stem]) for stem in both]
    return pairs, alone


def _by_stem(folder: Path, kind: str) -> dict[str, Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.stem: path
        for path in paths
        if path.suffix.lower() in KINDS[kind] and not path.name.startswith(".")
    }


def _scenes(table: Path, pairs: list[Pair]) -> dict[str, str]:
    """Give the scene of every pair. Raises TableError where the table does not say it."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            lacking = {"stem", "scene"} - set(rows.fieldnames or ())
            if lacking:
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise TableError(f"no column {' and '.join(sorted(lacking))}; columns: {found}")
            scenes: dict[str, str] = {}
            for row in rows:
                if scenes.setdefault(row["stem"], row["scene"]) != row["scene"]:
                    raise TableError(f"{row['stem']} is of two scenes")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"cannot be read: {error}") from error
    unknown = [stem for stem, _, _ in pairs if not scenes.get(stem)]
    if unknown:
        listed = ", ".join(unknown[:5])
        raise TableError(f"{len(unknown)} of {len(pairs)} pictures have no scene: {listed}")
    return scenes


def _split(pairs: list[Pair], scenes: dict[str, str]) -> dict[str, list[Pair]]:
    """By scene where scenes are known, else by the folders of the source."""
    if not scenes:
        val = [pair for pair in pairs if pair[0].startswith("te")]
    else:
        val = [pair for pair in pairs if _held_back(scenes[pair[0]])]
    kept = {stem for stem, _, _ in val}
    return {"train": [pair for pair in pairs if pair[0] not in kept], "val": val}


def _rule(table: Path | None) -> str:
    return f"one scene of {EVERY} goes to val, by its name" if table else "val is the test folder"


def _held_back(scene: str) -> bool:
    """Decide by the scene's name alone, the same on every machine."""
    return zlib.crc32(scene.encode()) % EVERY == 0


def _names(folder: Path) -> set[str]:
    """Of the files below it; hidden ones, as .DS_Store, do not count."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if not path.name.startswith(".")}


def _planned(pairs: list[Pair]) -> set[str]:
    return {name for pair in pairs for name in _targets(pair)}


def _targets(pair: Pair) -> tuple[str, str]:
    stem, image, mask = pair
    return f"imgs/{stem}{image.suffix.lower()}", f"masks/{stem}{mask.suffix.lower()}"


def _copy(pairs: list[Pair], folder: Path) -> None:
    """All of them or none: the folder is there under its name once it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as whole:
        for name in ("imgs", "masks"):
            (whole / name).mkdir(parents=True)
        for pair in pairs:
            for name, source in zip(_targets(pair), pair[1:], strict=True):
                shutil.copyfile(source, whole / name)


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
