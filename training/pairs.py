"""Which mask belongs to which image."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..contract.errors import ImageError, UserError, as_word
from ..contract.files import IMAGE_SUFFIXES, folders_below, image_paths, write_atomically
from ..contract.headers import stored_orientation
from ..contract.masks import StoredMask, read_stored
from ..contract.resize import network_input
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size

MASK_ENDING = "_mask"
"""Carvana's masks are named so: fff9b3a5373f_16_mask.gif for fff9b3a5373f_16.jpg."""

SHOWN_PROBLEMS = 20
PROBLEMS = "problems.txt"

LabelledImage = tuple[U8, Size, U8]
"""A network input (h, w, C), its file's (H, W) and the true class indices (H, W)."""


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and the path below the folder, without suffix, that they share."""

    name: str
    image: Path
    mask: Path


class Problem(NamedTuple):
    """What is wrong with the pair `name`; "" is the data as a whole. They sort by name."""

    name: str
    text: str
    hint: str = ""


def match_pairs(images: Path, masks: Path) -> tuple[list[Pair], list[Problem]]:
    """Match by the path below each folder without its suffix; a mask may end in "_mask".

    Return the pairs in the order of their names, and a problem for each file that has no
    partner or too many. Raises UserError when a folder is missing or empty, or both are one.
    """
    if images.is_dir() and images.resolve() == masks.resolve():
        raise UserError(
            f"{images} is named as the folder of the images and of the masks",
            expected="two folders: an image and its mask have the same name",
        )
    image_files = _by_name(images, image_paths(images))
    mask_files: dict[str, list[Path]] = defaultdict(list)
    for name, files in _by_name(masks, _mask_paths(masks)).items():
        mask_files[_image_name(name, image_files)] += files
    pairs, problems = [], []
    for name in sorted(image_files.keys() | mask_files.keys()):
        problem = _problem(image_files.get(name, []), mask_files.get(name, []))
        if problem:
            problems.append(Problem(name, problem))
        else:
            pairs.append(Pair(name, image_files[name][0], mask_files[name][0]))
    return pairs, problems


def read_pair(
    pair: Pair, spec: ModelSpec, bit_depth: int | None = None, mask: StoredMask | None = None
) -> tuple[U8, Size, StoredMask]:
    """Read the network's input (h, w, C), the file's (H, W) and the mask, of that size.

    mask: that of the pair, where it was read before.
    Raises ImageError for a file that cannot be read, and for sizes that differ.
    """
    image, size = network_input(pair.image, spec, bit_depth=bit_depth)
    mask = mask or read_stored(pair.mask)
    if mask.pixels.shape[:2] != size:
        raise ImageError(
            f"{pair.image} and {pair.mask} differ in size",
            seen=f"image {_text(size)}, mask {_text(mask.pixels.shape)}",
            hint=_hint_of_turn(pair, size == mask.pixels.shape[1::-1]),
        )
    return image, size, mask


def _hint_of_turn(pair: Pair, swapped: bool) -> str | None:
    if swapped and stored_orientation(pair.image) >= 5:
        image = as_word(pair.image)
        return f"exiftool -Orientation= {image}   where the mask is of the photo as it is stored"
    return None


def is_turned_in_doubt(pair: Pair, size: Size) -> bool:
    """Whether the image is turned by its EXIF orientation, and nothing tells if its mask is.

    size: that of both.
    """
    orientation = stored_orientation(pair.image)
    shown_by_size = orientation >= 5 and size[0] != size[1]
    return orientation != 1 and not shown_by_size and stored_orientation(pair.mask) == 1


def told_of_turns(pairs: Sequence[Pair], count: int) -> str:
    """What to say of those in doubt, among `count`."""
    return (
        f"{len(pairs)} of {count} images are turned by an EXIF orientation that their masks lack "
        f"({pairs[0].image}): the masks are taken for those of the upright pictures"
    )


def checked_pairs(images: Path, masks: Path) -> list[Pair]:
    """Raise one UserError that lists every image and mask without its partner."""
    pairs, problems = match_pairs(images, masks)
    raise_problems(problems)
    return pairs


def load_pair(pair: Pair, spec: ModelSpec, bit_depth: int | None = None) -> LabelledImage:
    """Read one pair to score on. Raises ImageError as read_pair does, and for unknown values."""
    image, size, mask = read_pair(pair, spec, bit_depth)
    return image, size, mask.classes(spec)


def raise_problems(problems: Iterable[Problem], folder: Path | None = None) -> None:
    """Raise one UserError with the first of them by name and their count, if there are any.

    folder: where a list that is too long is written, if it is there already.
    """
    found = sorted(set(problems))
    texts = [problem.text for problem in found]
    if not texts:
        return
    lines = [f"  - {text}" for text in texts[:SHOWN_PROBLEMS]]
    if len(texts) > SHOWN_PROBLEMS:
        lines.append(f"  … and {len(texts) - SHOWN_PROBLEMS} more{_kept(texts, folder)}")
    count = "1 problem" if len(texts) == 1 else f"{len(texts)} problems"
    raise UserError(
        "\n".join([f"{count} with the images and masks:", *lines]),
        expected="for each image one mask of the same name and size, with known values",
        hint=next((problem.hint for problem in found if problem.hint), None),
    )


def _kept(texts: list[str], folder: Path | None) -> str:
    """Write all of them; a disk that takes none is no reason to show none."""
    try:
        there = folder is not None and folder.is_dir()
        place = folder if folder and there else Path(tempfile.mkdtemp(prefix="unetrt-"))
        write_atomically(place / PROBLEMS, "".join(f"{text}\n" for text in texts).encode())
    except OSError:
        return ""
    return f": all are in {place / PROBLEMS}"


def _mask_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        seen = "a file" if folder.exists() else "no such folder"
        raise UserError(f"no folder of masks at {folder}", seen=seen)
    found = sorted(
        root / name
        for root, names in folders_below(folder).items()
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise UserError(f"no masks in {folder}", expected=" ".join(sorted(IMAGE_SUFFIXES)))
    return found


def _by_name(folder: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return found


def _image_name(mask_name: str, images: dict[str, list[Path]]) -> str:
    """Give an image whose own name ends in "_mask" preference over the ending's other meaning."""
    short = mask_name.removesuffix(MASK_ENDING)
    return short if mask_name not in images and short in images else mask_name


def _problem(images: list[Path], masks: list[Path]) -> str | None:
    if not masks:
        return f"no mask for {_listed(images)}"
    if not images:
        return f"no image for {_listed(masks)}"
    if len(masks) > 1:
        return f"several masks for {images[0]}: {_listed(masks)}"
    if len(images) > 1:
        return f"several images for {masks[0]}: {_listed(images)}"
    return None


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))
