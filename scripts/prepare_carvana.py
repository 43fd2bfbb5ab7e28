"""Fetch Carvana with Kaggle's own client, and lay it out as data/imgs and data/masks.

Needs unetrt, an account that has accepted the rules of the competition, its key where Kaggle's
client looks for it, and that client: pip install kaggle
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from archives import DAMAGE, is_cut, is_whole, told_of_damage, wanted_entries

from unetrt.contract.files import atomic_path

COMPETITION = "carvana-image-masking-challenge"
LARGE = {"imgs": "train_hq.zip", "masks": "train_masks.zip"}
SMALL = {"imgs": "train.zip", "masks": "train_masks.zip"}
ENDING = "_mask"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the data is not whole, 2 the request cannot be met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--archives", type=Path, metavar="DIR", help="zip files that are there")
    parser.add_argument("--small", action="store_true", help="the smaller JPEG files")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    args = parser.parse_args(argv)
    archives: Path = args.archives or args.data / "archives"
    parts = SMALL if args.small else LARGE
    broken = [name for name in parts.values() if is_cut(archives / name)]
    if broken:  # of what it would unpack nothing is known: the folders are not judged by it
        return _fail_damaged(archives, broken)
    foreign = [f for f, name in parts.items() if _is_foreign(args.data / f, archives / name)]
    if foreign:
        return _fail(f"{args.data / foreign[0]} holds files already: name another --data")
    missing = [name for name in parts.values() if not (archives / name).is_file()]
    steps = [_command(name, archives) for name in missing]
    if args.dry_run:
        lines = [" ".join(step) for step in steps]
        left = [f for f, name in parts.items() if not _is_there(args.data / f, archives / name)]
        lines += [f"unpack {archives / parts[f]} to {args.data / f}" for f in left]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    if steps and shutil.which("kaggle") is None:
        return _fail("Kaggle's client is needed: pip install kaggle")
    archives.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            return _fail(f"{' '.join(step)} failed: are the competition's rules accepted?")
    damaged = [name for name in parts.values() if not is_whole(archives / name)]
    if damaged:
        return _fail_damaged(archives, damaged)
    for folder, name in parts.items():
        if not _is_there(args.data / folder, archives / name):
            _unpack(archives / name, args.data / folder)
    return _check(args.data)


def _command(name: str, archives: Path) -> list[str]:
    words = f"kaggle competitions download -c {COMPETITION} -f {name} -p"
    return [*words.split(), str(archives)]


def _is_there(folder: Path, archive: Path) -> bool:
    """Whether the archive has been unpacked, all of it."""
    found = _files(folder)
    return bool(found) and found == _entries(archive)


def _is_foreign(folder: Path, archive: Path) -> bool:
    """Whether it holds what no unpacking of the archive, whole or cut in one file, leaves."""
    found = _files(folder)
    if not found or not archive.is_file():
        return bool(found)
    entries = _entries(archive)
    other = [name for name, size in found.items() if entries.get(name) != size]
    return len(other) > 1 or not found.keys() <= entries.keys()


def _files(folder: Path) -> dict[str, int]:
    """Names and sizes; hidden ones, as .keep and .DS_Store, do not count."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.stat().st_size for path in paths if not path.name.startswith(".")}


def _entries(archive: Path) -> dict[str, int]:
    """Names and sizes of what is unpacked; none of a damaged archive."""
    try:
        with zipfile.ZipFile(archive) as content:
            return {PurePosixPath(e.filename).name: e.file_size for e in wanted_entries(content)}
    except DAMAGE:
        return {}


def _unpack(archive: Path, folder: Path) -> None:
    """All of it or nothing: it is there under its name once it is whole.

    Only the files' own names count: an archive cannot write anywhere else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as whole, zipfile.ZipFile(archive) as content:
        whole.mkdir()
        for hidden in folder.glob(".*"):
            if hidden.is_file():
                shutil.copy2(hidden, whole)
        for entry in wanted_entries(content):
            name = PurePosixPath(entry.filename).name
            with content.open(entry) as source, (whole / name).open("wb") as target:
                shutil.copyfileobj(source, target)


def _check(data: Path) -> int:
    """Every image has its mask, and the other way round."""
    images = {Path(name).stem for name in _files(data / "imgs")}
    masks = {Path(name).stem.removesuffix(ENDING) for name in _files(data / "masks")}
    if not images or images != masks:
        alone = sorted(images ^ masks)
        sys.stderr.write(f"{len(alone)} of {len(images | masks)} have no partner: {alone[:5]}\n")
        return 1
    sys.stdout.write(f"{len(images)} images with masks in {data}; next: unetrt train --amp\n")
    return 0


def _fail_damaged(archives: Path, names: Sequence[str]) -> int:
    return _fail(told_of_damage(*(archives / name for name in names)))


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
