"""`ModelSpec`: all that turns an image into network input and network output into a mask file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal, get_args

from .errors import UPGRADE_HINT, UserError
from .log import log
from .types import NO_CLASS, Size

Resize = Literal["area", "pil-bicubic"]
Result = Literal["mask", "prob"]
"""What the fused network gives: uint8 class indices, or uint8 probabilities, 255 for 1."""
MaskValue = int | tuple[int, ...]
PaletteEntry = tuple[int, int, int, int]
"""An index of a palette, and its red, green and blue."""

VERSION = 1
_KINDS: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "channels": (int,),
    "classes": (int,),
    "class_names": (tuple,),
    "mask_values": (tuple,),
    "width": (int,),
    "bilinear": (bool,),
    "scale": (float, int),
    "resize": (str,),
    "threshold": (float,),
    "ignore_index": (int, type(None)),
    "result": (str,),
    "palette": (tuple,),
    "bit_depth": (int, type(None)),
}
MAX_CHANNELS = 512
"""More bands than any camera or satellite gives; a header that says so is damaged."""

MIN_SIDE = 16
"""Four poolings need 16 pixels: a shorter side is padded by its edge, in the graph."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Travels inside every artefact, so that no later stage asks or guesses.

    channels: of the network's input: 1 is grey, 3 is RGB, others are bands as they are stored.
    classes: the network's output channels; 1 is one logit, sigmoid and `threshold`.
    mask_values: what each class is written as in a mask file (two values for a one-class net).
    scale, resize: image size → network size, and the kernel that does it.
    ignore_index: the mask-file value left out of the loss and the scores.
    result: what the network gives; an exported graph gives one of them.
    palette: what the indices looked like in the palette masks that were trained on, if their
    indices are the classes' values: a file that orders its palette otherwise is read by colour.
    bit_depth: of the data in images of 16 bits that fill fewer (12 for most cameras).
    """

    channels: int = 3
    classes: int = 2
    class_names: tuple[str, ...] = ()
    mask_values: tuple[MaskValue, ...] = ()
    width: int = 64
    bilinear: bool = False
    scale: float = 0.5
    resize: Resize = "area"
    normalization: Literal["uint8/255"] = "uint8/255"
    threshold: float = 0.5
    ignore_index: int | None = None
    result: Result = "mask"
    palette: tuple[PaletteEntry, ...] = ()
    bit_depth: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            # type(), not isinstance(): to Python, True is an integer.
            _require(
                type(value) in kinds, name, repr(value), " or ".join(k.__name__ for k in kinds)
            )
        if not self.mask_values:
            object.__setattr__(self, "mask_values", tuple(range(self.mask_classes)))
        if not self.class_names:
            names = ("background", *(f"class {i}" for i in range(1, self.mask_classes)))
            object.__setattr__(self, "class_names", names)
        self._check()

    def _check(self) -> None:
        _require(self.version == VERSION, "version", self.version, f"{VERSION}")
        _require(
            1 <= self.channels <= MAX_CHANNELS, "channels", self.channels, f"1 to {MAX_CHANNELS}"
        )
        _require(1 <= self.classes < NO_CLASS, "classes", self.classes, f"1 to {NO_CLASS - 1}")
        _require(self.width >= 1, "width", self.width, "at least 1")
        _require(
            math.isfinite(self.scale) and 0 < self.scale <= 8, "scale", self.scale, "above 0, to 8"
        )
        _require(self.resize in get_args(Resize), "resize", self.resize, get_args(Resize))
        _require(
            self.normalization == "uint8/255", "normalization", self.normalization, "uint8/255"
        )
        _require(self.result in get_args(Result), "result", self.result, get_args(Result))
        _require(0 < self.threshold < 1, "threshold", self.threshold, "between 0 and 1")
        count = self.mask_classes
        names_are_text = all(isinstance(n, str) for n in self.class_names)
        _require(names_are_text, "class_names", self.class_names, "strings")
        _require(len(self.class_names) == count, "class_names", self.class_names, f"{count} names")
        values = self.mask_values
        _require(len(values) == count, "mask_values", values, f"{count} values")
        _require(len(set(values)) == count, "mask_values", values, "values that differ")
        depths = {len(v) if isinstance(v, tuple) else 0 for v in values}
        _require(depths in ({0}, {3}), "mask_values", values, "all integers or all RGB triples")
        ignored = self.ignore_index
        _require(ignored is None or 0 <= ignored <= 255, "ignore_index", ignored, "0 to 255")
        flat = [x for v in values for x in (v if isinstance(v, tuple) else (v,))]
        ok = all(type(x) is int and 0 <= x <= 255 for x in flat)
        _require(ok, "mask_values", values, "integers, 0 to 255")
        depth = self.bit_depth
        _require(depth is None or 8 <= depth <= 16, "bit_depth", depth, "8 to 16")
        entries = all(isinstance(e, tuple) and len(e) == 4 for e in self.palette)
        entries = entries and all(type(x) is int and 0 <= x <= 255 for e in self.palette for x in e)
        _require(entries, "palette", self.palette, "(index, red, green, blue), 0 to 255 each")

    @property
    def mask_classes(self) -> int:
        """Values in a mask: a one-class net tells background from foreground."""
        return max(2, self.classes)

    @property
    def planes(self) -> int:
        """Planes of a result: 0 for masks; a probability a class, two for a one-class net."""
        return 0 if self.result == "mask" else self.mask_classes

    def result_shape(self, batch: int, size: Size) -> tuple[int, ...]:
        """(N, H, W) of masks; (N, planes, H, W) of probabilities."""
        return (batch, self.planes, *size) if self.planes else (batch, *size)

    @property
    def rgb_masks(self) -> bool:
        return isinstance(self.mask_values[0], tuple)

    @property
    def black(self) -> int:
        """Of two classes the one that is 0 in a 1-bit mask: that of value 0, or black; else 0."""
        return int(self.mask_values[1] in (0, (0, 0, 0)))

    @property
    def bit_values(self) -> tuple[MaskValue, ...]:
        """Of two classes the values, that of black first."""
        return self.mask_values[::-1] if self.black else self.mask_values

    def input_size(self, size: Size) -> Size:
        """Give the network's input size for an image of `size`, truncated as the reference does."""
        height, width = size
        return max(1, int(self.scale * height)), max(1, int(self.scale * width))

    def depth(self, asked: int | None) -> int | None:
        """The bit depth to read images with, where a command may have asked for one."""
        return self.bit_depth if asked is None else asked

    def to_json(self) -> str:
        content = asdict(self)
        for name in ("palette", "bit_depth"):  # what has none is read by versions that know of none
            if not content[name]:
                del content[name]
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Raise UserError unless `text` is a spec of this version."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise UserError("not a model spec", seen=f"{text[:80]!r}: {error}") from error

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelSpec:
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise UserError(
                "the model spec has fields that this version does not know",
                seen=", ".join(sorted(unknown)),
                hint=UPGRADE_HINT,
            )
        values = mask_values_from_json(raw.get("mask_values", ()))
        names = tuple(raw.get("class_names", ()))
        palette = tuple(tuple(entry) for entry in raw.get("palette", ()))
        lists = {"mask_values": values, "class_names": names, "palette": palette}
        return cls(**{**raw, **lists})


def mask_values_from_json(values: Iterable[Any]) -> tuple[MaskValue, ...]:
    """Colours are lists there."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _require(ok: bool, field: str, seen: object, expected: object) -> None:
    if not ok:
        raise UserError(f"the model spec's {field} is wrong", seen=seen, expected=expected)


def ignored_values(ignore_index: int | None) -> frozenset[MaskValue]:
    """What it is in a mask: the value, or the grey of it among colours."""
    return frozenset(() if ignore_index is None else (ignore_index, (ignore_index,) * 3))


def _check_apart(values: tuple[MaskValue, ...], spec: ModelSpec) -> None:
    if ignored_values(spec.ignore_index) & set(values):
        texts = [":".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
        raise UserError(
            "--mask-values names the value that the model ignores",
            seen=f"--mask-values {','.join(texts)}, and ignore_index {spec.ignore_index}",
            expected="the values of the classes alone",
            hint=f"leave --mask-values out: the model has {spec.mask_values}",
        )


@cache
def _say_threshold(classes: int) -> None:
    """Once a process, and no other job: the masks are the same."""
    log.warning("a threshold counts for one logit alone; this network has %d classes", classes)


@dataclass(frozen=True, kw_only=True)
class SpecOverrides:
    """What a command may ask of a checkpoint; None leaves the checkpoint's own value.

    result is always asked: who does not know of probabilities must not be given any.
    """

    scale: float | None = None
    threshold: float | None = None
    mask_values: tuple[MaskValue, ...] | None = None
    bit_depth: int | None = None
    result: Result = "mask"

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """A palette's indices are the values that it came with: other values have none.

        Raises UserError for mask values of which the spec leaves one out of the scores.
        """
        _check_apart(self.mask_values or (), spec)
        palette = spec.palette if self.mask_values in (None, spec.mask_values) else ()
        counted = self._counted(spec)
        if "threshold" not in counted and self.threshold not in (None, spec.threshold):
            _say_threshold(spec.classes)
        return replace(spec, **{**counted, "palette": palette})

    def conflicts_with(self, spec: ModelSpec) -> list[str]:
        """List the names whose values differ from those of `spec`, and tell in its masks."""
        counted = self._counted(spec)
        return [name for name, value in counted.items() if value != getattr(spec, name)]

    def _counted(self, spec: ModelSpec) -> dict[str, Any]:
        """What is given and tells in the masks of `spec`: no threshold of several classes does."""
        given = self.given()
        return {n: value for n, value in given.items() if n != "threshold" or spec.classes == 1}


NO_OVERRIDES = SpecOverrides()
