"""A run that was interrupted: its own options, and where it stood."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..contract.errors import UserError, as_word
from ..contract.log import log
from ..contract.spec import ModelSpec, mask_values_from_json
from .checkpoint import Checkpoint, read_checkpoint
from .options import RecipeOptions, TrainOptions
from .ranks import is_main_process
from .rundir import LAST
from .samples import Sample, TrainingData

FREE = ("device", "workers", "wandb")
"""What this call may say otherwise: none of it changes a number on one device."""

DATA_FOLDERS = ("images", "masks", "val_images", "val_masks")
"""These may have moved: the names of the files in them tell whether they are the same."""

TEACHER = "teacher"
"""May have moved too; its digest is in last.pth under the same name."""

CHECKSUMS = "pixels"
"""Of images as the network takes them and masks at their own size, in last.pth."""

RECIPE = "recipe"
"""The flag that speaks of all fields of a recipe, but for those with a flag beside it."""


@dataclass(frozen=True)
class Resumed:
    """last.pth, read: `checkpoint.resume` holds the state of all that moves."""

    options: TrainOptions
    checkpoint: Checkpoint

    @property
    def finished(self) -> bool:
        return bool(self.checkpoint.resume.get("epoch", 0) >= self.options.recipe.epochs)


def folder_of_run(path: Path) -> Path:
    """Of what --resume names: a run's folder, or its last.pth."""
    return path if path.is_dir() else path.parent


def read_resumed(options: TrainOptions, path: Path, given: Collection[str] = ()) -> Resumed:
    """Read a run's folder, or its last.pth; `options` are those of this call.

    given: names of those that were asked for, though they may be the defaults, as of `train`.
    Raises UserError for a file without that state, and for options that are not the run's.
    """
    last = path / LAST if path.is_dir() else path
    checkpoint = read_checkpoint(last)
    if "options" not in checkpoint.resume:
        raise UserError(
            f"{last} does not say how its run stood",
            expected=f"the {LAST} of a run, or its folder",
            hint=f"--load {as_word(last)}   starts a new run from its weights",
        )
    stored = replace(options_from_json(checkpoint.resume["options"]), out=last.parent)
    asked = _asked(options, given, checkpoint.resume)
    _require_same(options, stored, asked)
    free = (*FREE, *DATA_FOLDERS, TEACHER)
    own = {name: getattr(options, name) for name in free if name in asked}
    whole = replace(stored, resume=None, **own)  # checked as a run of its own
    resumed = Resumed(replace(whole, resume=path), checkpoint)
    if not resumed.finished:
        _require_folders(resumed.options, path)
    return resumed


def with_whole_paths(options: TrainOptions) -> TrainOptions:
    """Name data and first weights from the root: a run may be resumed from anywhere."""
    places = {name: getattr(options, name) for name in (*DATA_FOLDERS, "load", TEACHER)}
    return replace(options, **{name: path.absolute() for name, path in places.items() if path})


def _require_folders(options: TrainOptions, run: Path) -> None:
    """Raise UserError where data has moved, or an older run names it from another folder."""
    places = {name: getattr(options, name) for name in DATA_FOLDERS}
    gone = {name: path for name, path in places.items() if path and not path.is_dir()}
    if gone:
        flags = " ".join(flag_text(name, "DIR") for name in gone)
        raise UserError(
            "the data of the run is not where it was",
            seen=", ".join(f"no folder {path.absolute()}" for path in gone.values()),
            expected="the images and masks that the run began with",
            hint=f"unetrt train --resume {as_word(run)} {flags}   where they are now",
        )


def options_to_json(options: TrainOptions) -> str:
    return json.dumps(asdict(options), default=str, sort_keys=True)


def options_from_json(text: str) -> TrainOptions:
    """Raise UserError for options that this version does not know."""
    raw = json.loads(text)
    try:
        recipe = raw.pop("recipe")
        weights = recipe.pop("class_weights")
        recipe["class_weights"] = weights if weights == "auto" else tuple(weights)
        raw["class_names"] = tuple(raw["class_names"])
        values = raw.get("mask_values", ())
        raw["mask_values"] = mask_values_from_json(values)
        paths = [f.name for f in fields(TrainOptions) if "Path" in str(f.type)]
        raw |= {name: Path(raw[name]) for name in paths if raw.get(name) is not None}
        return TrainOptions(**raw, recipe=RecipeOptions(**recipe))
    except (KeyError, TypeError) as error:
        raise UserError(
            "the run was begun by another version",
            seen=error,
            hint="--load LAST.PTH   starts a new run from its weights",
        ) from error


def data_names(data: TrainingData) -> list[str]:
    """Name all pairs, in order: the same names give the same batches."""
    return [_name(s) for s in data.train] + ["--"] + [_name(s) for s in data.validation]


def data_checksums(data: TrainingData) -> list[int]:
    """Sum up what was read of each pair, in the order of `data_names`."""
    return [s.checksum for s in data.train] + [0] + [s.checksum for s in data.validation]


def require_same_data(data: TrainingData, resumed: Checkpoint) -> None:
    """Raise UserError when files came, went or changed, or masks hold other values.

    A checkpoint of before today's checksums, of masks at their own size, tells by names and sizes.
    """
    names, before = data_names(data), resumed.resume["data"]
    other = [f"{name} came or went" for name in sorted(set(names) ^ set(before))]
    if not other and names == before:
        sums = data_checksums(data)
        if CHECKSUMS not in resumed.resume and is_main_process():
            log.warning("the run was begun by an older version: pixels are not compared with its")
        told = zip(names, sums, resumed.resume.get(CHECKSUMS, sums), strict=True)
        other = [f"{name} has other pixels" for name, now, then in told if now != then]
    # Neither was always kept: what the palettes look like changes no class, and the bit depth
    # shows in the checksums.
    depth = resumed.spec.bit_depth or data.spec.bit_depth
    before_them = replace(resumed.spec, bit_depth=depth)
    same = replace(data.spec, palette=resumed.spec.palette) == before_them
    if same and names == before and not other:
        return
    raise UserError(
        "the images or masks are not those that the run began with",
        seen=f"{len(other)} differ: {', '.join(other[:5])}" if other else _shape(data.spec),
        expected="the same files" if other else _shape(resumed.spec),
        hint="--load LAST.PTH   starts a new run from its weights",
    )


def _name(sample: Sample) -> str:
    return f"{sample.pair.name} {sample.size[0]} {sample.size[1]}"


def _shape(spec: ModelSpec) -> str:
    return f"mask values {spec.mask_values} of {', '.join(spec.class_names)}"


def _flat(options: TrainOptions) -> dict[str, Any]:
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    recipe: RecipeOptions = values.pop("recipe")
    return values | {f.name: getattr(recipe, f.name) for f in fields(recipe)}


def _changed(options: TrainOptions) -> list[str]:
    """Names of the options that are not the defaults: these were asked for."""
    default = _flat(TrainOptions())
    return [name for name, value in _flat(options).items() if value != default[name]]


def _asked(options: TrainOptions, given: Collection[str], state: dict[str, Any]) -> set[str]:
    """Names of what this call speaks of. Its recipe is silent of what began beside the run's.

    state: of the run, with what it was given when it began. A recipe is silent, too, of what that
    of the run's version did not have.
    """
    named = {field.name for field in fields(RecipeOptions)} - set(given)
    of_recipe = named if RECIPE in given else set()
    known = set(json.loads(state["options"])["recipe"]) - set(state.get("given", ()))
    return ({*given, *_changed(options)} - of_recipe) | (of_recipe & known)


def _require_same(options: TrainOptions, stored: TrainOptions, names: Collection[str]) -> None:
    """A flag may be repeated or left out; one that says something else is refused."""
    asked, run = _flat(options), _flat(stored)
    free = ("resume", *FREE, *DATA_FOLDERS, *([TEACHER] if stored.teacher else []))
    said = [name for name in asked if name in names and name not in free]
    wrong = [name for name in said if _whole(asked[name]) != _whole(run[name])]
    if wrong:
        raise UserError(
            "a resumed run keeps the options that it began with",
            seen=", ".join(flag_text(name, asked[name]) for name in wrong),
            expected=", ".join(flag_text(name, run[name]) for name in wrong),
            hint="leave them out, or start a new run from the weights with --load",
        )


def _whole(value: object) -> object:
    """One file has many paths."""
    return value.resolve() if isinstance(value, Path) else value


def flag_text(name: str, value: object) -> str:
    """The flag as it is written."""
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if value is None or value is False or value == ():
        return f"no {flag}"
    if isinstance(value, tuple):
        return f"{flag} {','.join(map(str, value))}"
    return f"{flag} {value}"
