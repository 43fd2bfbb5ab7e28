"""Checkpoints: ours, and the bare state_dicts of milesial/Pytorch-UNet."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import UPGRADE_HINT, UserError, as_word, first_line
from ..contract.files import atomic_path, hint_of_run, require_file
from ..contract.log import log
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.tiles import middle
from ..contract.types import U8, Size
from .archive import damaged_entry
from .state_dicts import (
    TRAIN_HINT,
    WHOLE_HINT,
    not_a_checkpoint,
    read_state_dict,
)
from .unet import UNet

FORMAT = "unetrt-checkpoint-1"
LOAD_ERRORS = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch.load raises for files that are not its own."""

Golden = tuple[U8, Size]
"""A network input (h, w, C) and the (height, width) of its mask."""

GOLDEN_SIDE = 1024
"""Pixels; see golden_part."""


@dataclass
class Checkpoint:
    """A network's weights with all that later stages need to use them.

    bare: read from a plain state_dict, which says nothing of scale, names or resize kernel.
    resume: optimiser, scheduler, scaler, epoch, step, best score and random state.
    """

    spec: ModelSpec
    state: dict[str, Tensor]
    golden: list[Golden] = field(default_factory=list)
    resume: dict[str, Any] = field(default_factory=dict)
    bare: bool = False

    def with_overrides(self, overrides: SpecOverrides) -> Checkpoint:
        """A bare checkpoint says neither scale nor threshold; where ours does, warn."""
        if self.bare and overrides.scale is None:
            _say_scale(self.spec.scale)
        for name in [] if self.bare else overrides.conflicts_with(self.spec):
            trained = getattr(self.spec, name)
            if name == "result" or trained is None:
                continue  # a checkpoint gives either; what it does not say is no other
            log.warning(
                "the checkpoint was trained with %s %s, another one is asked", name, trained
            )
        return replace(self, spec=overrides.applied_to(self.spec))


@cache
def _say_scale(scale: float) -> None:
    """Once a process: a bench and a job with several devices open the same file many times."""
    log.warning("the checkpoint does not say its scale: %s, as predict.py takes, or --scale", scale)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write whole or not at all. Raises UserError where the disk takes no more."""
    golden = [{"image": torch.from_numpy(i), "size": list(s)} for i, s in checkpoint.golden]
    content = {
        "format": FORMAT,
        "spec": checkpoint.spec.to_json(),
        "model": checkpoint.state,
        "golden": golden,
        **checkpoint.resume,
    }
    _save(path, content)


def golden_part(image: U8, size: Size) -> Golden:
    """A network input (h, w, C) and its mask's (H, W), of large ones the middle, as golden image.

    Whatever opens an engine computes it first.
    """
    return middle(image, size, GOLDEN_SIDE)


def _save(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with atomic_path(path, durable=True) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter on a full disk
        before = "the file of before is there, and whole" if path.exists() else "there is none yet"
        raise UserError(
            f"cannot write {path}; {before}",
            seen=first_line(error),
            expected="room on the disk, and the right to write there",
            hint=f"df -h {as_word(path.parent)}",
        ) from error


def write_bare(path: Path, checkpoint: Checkpoint) -> None:
    """Write the form that Pytorch-UNet's predict.py loads: a state_dict with mask_values."""
    values = [list(v) if isinstance(v, tuple) else v for v in checkpoint.spec.mask_values]
    _save(path, {**checkpoint.state, "mask_values": values})


def bare_differences(spec: ModelSpec) -> list[str]:
    """Say what Pytorch-UNet's predict.py will do otherwise with the bare form of this network."""
    found = []
    if (spec.channels, spec.width) != (3, 64):
        seen = f"this one has {spec.channels} and {spec.width}"
        found.append(
            f"it makes a network of 3 channels and width 64, {seen}: edit its UNet(…) call"
        )
    if spec.resize != "pil-bicubic":
        found.append(f"it resizes images by pil-bicubic, this network learnt from {spec.resize}")
    if spec.bit_depth:
        found.append(f"it knows of no bit depth, this network learnt from {spec.bit_depth} bits")
    if spec.classes == 1 and spec.threshold != 0.5:
        found.append(f"its threshold is 0.5 unless -t {spec.threshold} is given")
    return found


def read_checkpoint(path: Path) -> Checkpoint:
    """Raise UserError for what is not a checkpoint; nothing in the file is ever executed."""
    content = _load(path)
    if content.get("format") == FORMAT:
        checkpoint = _ours(path, content)
    elif "format" in content:
        raise UserError(
            f"{path} has a checkpoint format that this version does not know",
            seen=content["format"],
            expected=FORMAT,
            hint=UPGRADE_HINT,
        )
    else:
        checkpoint = Checkpoint(*read_state_dict(path, content), bare=True)
    _check_weights(path, checkpoint)
    return checkpoint


def is_bare_of(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file is the bare form of these weights and nothing more."""
    try:
        found = _load(path)
    except UserError:
        return False
    return found.keys() - {"mask_values"} == checkpoint.state.keys() and all(
        isinstance(found[name], Tensor)
        and found[name].dtype == tensor.dtype
        and torch.equal(found[name], tensor)
        for name, tensor in checkpoint.state.items()
    )


def unet_from_checkpoint(checkpoint: Checkpoint) -> UNet:
    """The network in evaluation mode, fp32."""
    spec = checkpoint.spec
    net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear)
    net.load_state_dict(checkpoint.state)
    return net.float().eval()


def _load(path: Path) -> dict[str, Any]:
    require_file(path, "checkpoint", hint_of_run(path) or TRAIN_HINT)
    try:
        _require_whole(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle versions, in foreign files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = "Unsupported global" in str(error) or "weights_only" in str(error).lower()
        if code and _is_pickle(path):
            raise not_a_checkpoint(path, "a pickle that would run code", WHOLE_HINT) from error
        raise not_a_checkpoint(path, _describe(path)) from error
    except LOAD_ERRORS as error:
        raise not_a_checkpoint(path, _describe(path)) from error
    if not isinstance(content, dict):
        raise not_a_checkpoint(path, f"a {type(content).__name__}")
    return content


def _require_whole(path: Path) -> None:
    """Raise UserError for damage that torch.load does not notice: other weights, other masks."""
    entry = damaged_entry(path)
    if entry is not None:
        raise UserError(
            f"{path} is a damaged checkpoint",
            seen=f"{entry} in it differs from its checksum",
            expected="every byte as it was written",
            hint=f"sha256sum {as_word(path)}   here and where it comes from, and copy it again",
        )


def _is_pickle(path: Path) -> bool:
    names = _names_in_zip(path)
    if names is not None:
        return any(name.endswith("data.pkl") for name in names)
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _names_in_zip(path: Path) -> list[str] | None:
    """None of what is no zip archive; [] of one whose directory is damaged."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except LOAD_ERRORS:
        return []


def _describe(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(24)
    names = _names_in_zip(path)
    if names is not None:
        if any("/code/" in name for name in names):
            return "a TorchScript archive, which is a program and no state_dict"
        return f"a damaged or foreign zip archive of {path.stat().st_size} bytes"
    return f"{path.stat().st_size} bytes that begin {head!r}"


def _ours(path: Path, content: dict[str, Any]) -> Checkpoint:
    try:
        spec = ModelSpec.from_json(content["spec"])
        golden = [(g["image"].numpy(), (g["size"][0], g["size"][1])) for g in content["golden"]]
        state = dict(content["model"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise not_a_checkpoint(path, f"a checkpoint without a usable {error}") from error
    rest = {k: v for k, v in content.items() if k not in ("format", "spec", "model", "golden")}
    return Checkpoint(spec, state, golden, rest)


def _check_weights(path: Path, checkpoint: Checkpoint) -> None:
    """Names and shapes those of the spec's network, and every number finite."""
    spec = checkpoint.spec
    with torch.device("meta"):
        expected = UNet(spec.channels, spec.classes, spec.width, spec.bilinear).state_dict()
    for name, tensor in expected.items():
        found = checkpoint.state.get(name)
        seen = tuple(found.shape) if isinstance(found, Tensor) else "missing"
        if seen != tuple(tensor.shape):
            raise UserError(
                f"{path} does not hold the network that it names: {name}",
                seen=seen,
                expected=tuple(tensor.shape),
                hint="the U-Net of milesial/Pytorch-UNet, unchanged, of any width, is what runs",
            )
    unknown = sorted(set(checkpoint.state) - set(expected))
    if unknown:
        raise UserError(f"{path} holds weights that this U-Net has no place for", seen=unknown[:5])
    for name, tensor in checkpoint.state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{path} holds weights that are not finite, its masks would be empty",
                seen=name,
                hint="train again with a lower --learning-rate, or without --amp",
            )
