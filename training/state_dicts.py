"""The bare state_dicts of milesial/Pytorch-UNet, and what training scripts wrap them in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import UserError
from ..contract.log import log
from ..contract.spec import MaskValue, ModelSpec

FIRST_WEIGHT = "inc.double_conv.0.weight"
WRAPPED_BY = ("state_dict", "model_state_dict", "model")
"""Keys below which other training scripts keep the state_dict."""

WHOLE_HINT = (
    'where it was made: old = torch.load("old.pth", weights_only=False); '
    f"new = next((old[k] for k in {WRAPPED_BY} if k in old), old) if isinstance(old, dict) else old"
    "; new = new if isinstance(new, dict) else new.state_dict(); torch.save("
    '{k: v for k, v in new.items() if torch.is_tensor(v)}, "weights.pth")'
)
TRAIN_HINT = "unetrt train --images DIR --masks DIR   writes a checkpoint"


def not_a_checkpoint(path: Path, seen: str, hint: str = TRAIN_HINT) -> UserError:
    return UserError(
        f"{path} is not a checkpoint",
        seen=seen,
        expected="a .pth file of unetrt, or a state_dict of Pytorch-UNet",
        hint=hint,
    )


def read_state_dict(path: Path, content: dict[str, Any]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read every property off the shapes of the tensors in the file at `path`.

    Raises UserError for what is no state_dict of this network.
    """
    values = content.pop("mask_values", None)
    state = _without_biases(_counted(_unwrapped(path, content)))
    values = state.pop("mask_values", values)
    first, last = state.get(FIRST_WEIGHT), state.get("outc.conv.weight")
    if not isinstance(first, Tensor) or not isinstance(last, Tensor):
        if "inc.conv.conv.0.weight" in state:
            raise UserError(
                f"{path} is of an older Pytorch-UNet, whose parameters have other names",
                seen="inc.conv.conv.0.weight",
                expected=FIRST_WEIGHT,
                hint=TRAIN_HINT,
            )
        keys = ", ".join(list(state)[:3]) or "no keys"
        raise not_a_checkpoint(path, f"a dictionary with {keys} …")
    try:
        spec = ModelSpec(
            channels=first.shape[1],
            classes=last.shape[0],
            mask_values=_bare_values(path, values, max(2, last.shape[0])),
            width=first.shape[0],
            bilinear="up1.up.weight" not in state,
            resize="pil-bicubic",
        )
    except UserError as error:
        raise not_a_checkpoint(path, error.reason) from error
    # Scripts keep numbers and text beside the weights too; tensors without a place are refused.
    return spec, {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _unwrapped(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The state_dict itself: as training scripts wrap it, and wrappers of the network name it."""
    inner = (content.get(key) for key in WRAPPED_BY)
    state = next((part for part in inner if isinstance(part, dict)), content)
    prefix = _prefix(path, [str(key) for key in state])
    beside = [
        k for k, v in state.items() if isinstance(v, Tensor) and not str(k).startswith(prefix)
    ]
    if beside:
        told = "%s: the weights of the U-Net are taken alone, without %d beside them, as %s"
        log.warning(told, path, len(beside), beside[0])
    return {
        str(key).removeprefix(prefix): value
        for key, value in state.items()
        if str(key).startswith(prefix) or key == "mask_values"
    }


def _counted(state: dict[str, Any]) -> dict[str, Any]:
    """With the counters of batch norms, which old PyTorch and other tools leave out.

    Zero is what PyTorch itself takes for them; the network computes without.
    """
    means = (name for name in state if name.endswith(".running_mean"))
    counters = [name.replace("running_mean", "num_batches_tracked") for name in means]
    return state | {name: torch.tensor(0) for name in counters if name not in state}


def _without_biases(state: dict[str, Any]) -> dict[str, Any]:
    """Without those before batch norms, which older versions of Pytorch-UNet have.

    What such a norm takes off is a mean that is lower by the bias: the network is the same.
    """
    kept = dict(state)
    for name, bias in state.items():
        stem, _, place = name.removesuffix(".bias").rpartition(".double_conv.")
        norm = f"{stem}.double_conv.{int(place) + 1}.running_mean" if place in ("0", "3") else ""
        mean = state.get(norm)
        if isinstance(mean, Tensor) and isinstance(bias, Tensor) and bias.shape == mean.shape:
            kept[norm] = mean - kept.pop(name)
    return kept


def _prefix(path: Path, names: list[str]) -> str:
    """What stands before every name of the network. UserError: the file holds several."""
    found = [n.removesuffix(FIRST_WEIGHT) for n in names if n.endswith(f".{FIRST_WEIGHT}")]
    if FIRST_WEIGHT in names:
        found.insert(0, "")
    if len(found) > 1:
        raise UserError(
            f"{path} holds several networks",
            seen=", ".join(prefix or "names without a prefix" for prefix in found),
            expected="one state_dict",
            hint="where it was made: torch.save the state_dict that is meant",
        )
    return found[0] if found else ""


def _bare_values(path: Path, raw: object, count: int) -> tuple[MaskValue, ...]:
    """Values of Pytorch-UNet's data set; it writes those that it met, however many classes.

    Raises UserError for what are no values of a mask.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list | tuple):
        raise UserError("its mask_values are no list", seen=repr(raw))
    values = [_bare_value(value) for value in raw]
    if len({type(value) for value in values}) > 1:
        raise UserError("its mask_values are numbers and colours", seen=repr(raw))
    if not len(set(values)) == len(values) <= count:
        raise UserError("its mask_values do not fit its classes", seen=f"{raw!r} for {count}")
    missing = count - len(values)
    if missing and values:
        added = _unused(values, missing)
        values += added
        listed = ", ".join(map(str, added))
        log.warning(f"{path} names no mask value for {missing} of its classes: taken {listed}")
    return tuple(values)


def _bare_value(raw: object) -> MaskValue:
    """A number, or a colour; the alpha of either is dropped."""
    if isinstance(raw, list | tuple) and len(raw) == 2:
        return _byte(raw[0])
    if isinstance(raw, list | tuple) and len(raw) in (3, 4):
        return tuple(_byte(x) for x in raw[:3])
    return _byte(raw)


def _byte(raw: object) -> int:
    if isinstance(raw, int | float) and 0 <= raw <= 255 and raw == int(raw):
        return int(raw)
    raise UserError("its mask_values are not of 0 to 255", seen=repr(raw))


def _unused(values: Iterable[MaskValue], count: int) -> list[MaskValue]:
    """Numbers, or greys of three channels, that no class has yet."""
    taken = set(values)
    colours = any(isinstance(value, tuple) for value in taken)
    free: Iterable[MaskValue] = ((i, i, i) if colours else i for i in range(256))
    return [value for value in free if value not in taken][:count]
