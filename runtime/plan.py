"""The plan of a job: which images, and where each mask goes."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from ..contract.addresses import is_address
from ..contract.errors import UserError, as_word
from ..contract.files import IMAGE_SUFFIXES, OVERLAY_SUFFIX, REFERENCE_SUFFIX
from ..contract.log import log
from .inputs import Input, expand_inputs, input_roots, inside, located
from .shards import Shard, list_mark


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


def plan_tasks(
    inputs: Sequence[str],
    *,
    outputs: Sequence[Path] = (),
    output_dir: Path | None = None,
    save: bool = True,
    suffix: str = ".png",
    overlay_dir: Path | None = None,
    recorded: Mapping[str, str] | None = None,
) -> list[Task]:
    """Expand files, folders, globs and lists; name every output, no two alike.

    suffix: of the masks that are not named by `outputs`. overlay_dir: where overlays (JPEG) go.
    recorded: image → mask of what is done, as the journal names them; these keep their names.

    Raises UserError for what names no image, for outputs that do not match the inputs, for a mask
    that would take the place of an image or lie among the images, and for one outside its folder.
    """
    if outputs and output_dir:
        raise UserError("-o and --output-dir exclude each other", seen="both", expected="one")
    folders = [folder for folder in (output_dir, overlay_dir) if folder is not None]
    found = expand_inputs(inputs, folders)
    masks: Sequence[Path | None] = [None] * len(found)
    if save and outputs:
        masks = _named_outputs(found, outputs)
    elif save and output_dir is not None:
        masks = _tree_outputs(found, output_dir, suffix, recorded or {})
    elif save:
        masks = _reference_outputs(found, suffix)
    overlays: Sequence[Path | None] = [None] * len(found)
    if overlay_dir is not None:
        overlays = _tree_outputs(found, overlay_dir, OVERLAY_SUFFIX, recorded or {})
    tasks = [Task(item.path, *paths) for item, *paths in zip(found, masks, overlays, strict=True)]
    _check_sources_kept(tasks)
    _check_overlays_apart(tasks)
    for folder, paths in ((output_dir, masks), (overlay_dir, overlays)):
        if folder is not None:
            written = [path for path in paths if path is not None]
            _check_no_inputs(inputs, folder, written)
            require_inside(written, folder)
    return tasks


def _check_sources_kept(tasks: Sequence[Task]) -> None:
    sources = set(located(task.source for task in tasks))
    for output in located(path for task in tasks for path in task.files):
        if output in sources:
            raise UserError(
                f"a mask or an overlay would replace the image {output}",
                seen="an output that is an input too",
                expected="masks beside the images, or in a folder of their own",
                hint="--output-dir DIR   with a folder that holds none of the images",
            )


def _check_overlays_apart(tasks: Sequence[Task]) -> None:
    """Masks differ from each other, and so do overlays."""
    overlays = set(located(task.overlay for task in tasks if task.overlay is not None))
    for mask in located(task.output for task in tasks if task.output is not None and overlays):
        if mask in overlays:
            raise UserError(
                f"a mask and an overlay would be one file: {mask}",
                seen="-o or --output-dir, and --overlay, that meet",
                expected="a file of its own for each",
                hint="--overlay DIR   with another DIR",
            )


def _check_no_inputs(inputs: Sequence[str], folder: Path, written: Sequence[Path]) -> None:
    """Refuse masks that the same command would take for images the next time.

    An output folder below a folder of images is passed over when that is read.
    """
    place = _resolved(folder)
    for root, pattern in ((_resolved(root), pattern) for root, pattern in input_roots(inputs)):
        if place != root and place not in root.parents:
            continue
        among = inside(root)
        for path in filter(among, located(written)):
            name = PurePath(path)
            if name.suffix.lower() in IMAGE_SUFFIXES and fnmatch(name.name, pattern):
                raise UserError(
                    "masks among the images would be images of the next run",
                    seen=path,
                    expected=f"masks outside {root}, or in a folder below it, which is passed over",
                    hint=f"--output-dir {as_word(root / 'masks')}",
                )


def require_inside(written: Iterable[Path], folder: Path) -> None:
    """Raise UserError for a path that leaves `folder` through a link."""
    if is_address(folder):
        return
    place = folder.resolve()
    stays = inside(place)
    for path in located(written):
        if not stays(path):
            raise UserError(
                f"a link leads out of {folder}",
                seen=path,
                expected=f"masks below {place}",
                hint="remove the link, or --output-dir DIR   with the folder that it leads to",
            )


def _resolved(folder: Path) -> Path:
    return folder if is_address(folder) else folder.resolve()


def _reference_outputs(found: list[Input], suffix: str) -> list[Path]:
    """STEM_OUT.png beside the image; a later image of the same stem gets STEM.EXT_OUT.png."""
    taken: set[str] = set()
    outputs = []
    for item, place in zip(found, located(item.path for item in found), strict=True):
        path = PurePath(place)
        names = (stem + REFERENCE_SUFFIX + suffix for stem in _stems(path))
        name = next(name for name in names if _folded(path.with_name(name)) not in taken)
        taken.add(_folded(path.with_name(name)))
        outputs.append(item.path.with_name(name))
    return outputs


def _named_outputs(found: list[Input], outputs: Sequence[Path]) -> list[Path]:
    if len(found) != len(outputs):
        raise UserError(
            "-o takes one file for each image",
            seen=f"{len(outputs)} files for {len(found)} images",
            hint="--output-dir DIR   names them itself",
        )
    if len(set(located(outputs))) < len(outputs):
        raise UserError(
            "-o names one file twice",
            seen=" ".join(map(str, outputs)),
            expected="a file of its own for each image",
        )
    return list(outputs)


def _tree_outputs(
    found: list[Input], output_dir: Path, suffix: str, recorded: Mapping[str, str]
) -> list[Path]:
    """<tree>/<stem>.png; a later input of the same stem gets <stem>.<ext>.png, then a number."""
    folders = {item.relative.parent for item in found}
    taken = {_folded(name) for folder in folders for name in (folder, *folder.parents)}
    kept = _kept_names(found, suffix, recorded, taken)
    names, renamed = [], 0
    for item in found:
        name = kept.get(item.path) or _free_name(item.relative, suffix, taken)
        renamed += item.path not in kept and name.name != item.relative.stem + suffix
        names.append(output_dir / name)
    if renamed:
        log.warning("inputs that share a stem with another: %d, named STEM.EXT%s", renamed, suffix)
    return names


def _free_name(path: PurePath, suffix: str, taken: set[str]) -> PurePath:
    """The first of its names that no other one has; taken from now on."""
    for stem in _stems(path):
        name = path.with_name(stem + suffix)
        folded = _folded(name)
        if folded not in taken:
            break
    taken.add(folded)
    return name


def _kept_names(
    found: list[Input], suffix: str, recorded: Mapping[str, str], taken: set[str]
) -> dict[Path, PurePath]:
    """Take the names that images have already: a new image that comes first might want one.

    Two that differ in case only stay as they are: their file system keeps them apart.
    """
    kept: dict[Path, PurePath] = {}
    folders, held = frozenset(taken), set[PurePath]()
    if not recorded:
        return kept
    for item, place in zip(found, located(item.path for item in found), strict=True):
        stem = PurePath(recorded.get(place, "")).stem  # an overlay has the stem of its mask
        name = item.relative.with_name(stem + suffix) if stem else item.relative
        if not stem.startswith(item.relative.stem) or _folded(name) in folders or name in held:
            continue
        kept[item.path] = name
        held.add(name)
        taken.add(_folded(name))
    return kept


def _folded(path: PurePath) -> str:
    """Equal for two names that some file system takes for one: of case or of Unicode's forms."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _stems(path: PurePath) -> Iterable[str]:
    """What a mask may be called: after the stem, after the whole name, then with a number."""
    yield path.stem
    yield path.name
    for number in itertools.count(2):
        yield f"{path.name}-{number}"


class PartOfList(list[Task]):
    """The tasks of a shard. whole: what tells the list that it is a part of from another one."""

    whole = ""


def tasks_of_shard(tasks: Sequence[Task], shard: Shard, output_dir: Path) -> PartOfList:
    """The tasks of one shard; every task belongs to one of them.

    By a hash of the output's name and not by place: an image that is added or goes between two
    runs moves no other image to another shard, and costly images spread over all of them.
    """
    names = [_name_in_job(task, output_dir) for task in tasks]
    part = PartOfList(t for t, name in zip(tasks, names, strict=True) if shard.holds(name))
    part.whole = list_mark(names)
    return part


def whole_of(tasks: Sequence[Task]) -> str:
    """Of the list that these are a shard's part of; "" for all else."""
    return tasks.whole if isinstance(tasks, PartOfList) else ""


def _name_in_job(task: Task, output_dir: Path) -> str:
    """The same on every machine, wherever it has mounted the folders."""
    if task.output is None:
        return task.source.as_posix()
    return task.output.relative_to(output_dir).as_posix()
