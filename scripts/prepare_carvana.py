"""Fetch Carvana with Kaggle's own client, and lay it out as data/imgs and data/masks.

Needs an account that has accepted the rules of the competition, its key where Kaggle's client
looks for it, and that client: pip install kaggle
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

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
    full = [f for f in parts if any((args.data / f).glob("*"))]
    if full:
        return _fail(f"{args.data / full[0]} holds files already: name another --data")
    missing = [name for name in parts.values() if not (archives / name).is_file()]
    steps = [_command(name, archives) for name in missing]
    if args.dry_run:
        lines = [" ".join(step) for step in steps]
        lines += [f"unpack {archives / name} to {args.data / f}" for f, name in parts.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    if steps and shutil.which("kaggle") is None:
        return _fail("Kaggle's client is needed: pip install kaggle")
    archives.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            return _fail(f"{' '.join(step)} failed: are the competition's rules accepted?")
    damaged = [name for name in parts.values() if not _is_whole(archives / name)]
    if damaged:
        paths = " ".join(str(archives / name) for name in damaged)
        return _fail(f"damaged: {paths}: the download was cut; remove it and run this again")
    for folder, name in parts.items():
        _unpack(archives / name, args.data / folder)
    return _check(args.data)


def _command(name: str, archives: Path) -> list[str]:
    words = f"kaggle competitions download -c {COMPETITION} -f {name} -p"
    return [*words.split(), str(archives)]


def _is_whole(archive: Path) -> bool:
    """Read every file of it, as unpacking will: each has a checksum."""
    try:
        with zipfile.ZipFile(archive) as content:
            return content.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return False


def _unpack(archive: Path, folder: Path) -> None:
    """All of it or nothing: it is there under its name once it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        _unpack_to(archive, whole)
        if folder.exists():
            folder.rmdir()  # an empty one
        whole.rename(folder)


def _unpack_to(archive: Path, folder: Path) -> None:
    """Only the files' own names count: an archive cannot write anywhere else."""
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            path = PurePosixPath(entry.filename)
            if entry.is_dir() or path.name.startswith(".") or path.parts[0] == "__MACOSX":
                continue
            with content.open(entry) as source, (folder / path.name).open("wb") as target:
                shutil.copyfileobj(source, target)


def _check(data: Path) -> int:
    """Every image has its mask, and the other way round."""
    images = {path.stem for path in (data / "imgs").iterdir()}
    masks = {path.stem.removesuffix(ENDING) for path in (data / "masks").iterdir()}
    if not images or images != masks:
        alone = sorted(images ^ masks)
        sys.stderr.write(f"{len(alone)} of {len(images | masks)} have no partner: {alone[:5]}\n")
        return 1
    sys.stdout.write(f"{len(images)} images with masks in {data}; next: unetrt train --amp\n")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
