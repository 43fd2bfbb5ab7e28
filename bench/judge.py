"""The masks that a row left, against fp32 PyTorch's and, where it is known, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..contract.errors import ImageError, UserError
from ..contract.images import image_size
from ..contract.masks import class_indices, read_mask, true_classes
from ..contract.metrics import ConfusionMatrix, Scores
from ..contract.spec import ModelSpec
from ..contract.types import U8
from ..export.gate import MIN_AGREEMENT, GateOptions
from ..training.pairs import match_pairs
from .stock import TF32
from .text import listed

ClassIou = dict[str, float | None]
"""Per class; None for a class that neither side has."""

LEAST_AGREEMENT = {**MIN_AGREEMENT, TF32: MIN_AGREEMENT["fp16"]}
"""The gate's; of TF32, which rounds to as many bits as fp16, that of fp16."""
IOU_FACTOR = 10
"""A class may lose ten times the share of its own pixels that LEAST_AGREEMENT grants to all."""
FEW_PIXELS = 4
"""As many of a class may differ whatever its IoU: one pixel of a dozen says nothing."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """agreement: share of pixels equal to the baseline's over all masks. iou: between the two.

    differ: pixels of each class that one of the two has and the other has not. miou: over the
    foreground, against the truth; truth_iou: per class; both None without --masks.
    """

    agreement: float
    iou: ClassIou
    miou: float | None = None
    truth_iou: ClassIou | None = None
    differ: dict[str, int] = field(default_factory=dict)


def judge_masks(
    found: Sequence[Path],
    baseline: Sequence[Path],
    spec: ModelSpec,
    truth: Mapping[int, Path] | None = None,
) -> Judgement:
    """Compare mask files as they are written; truth: by their place in the sequences.

    Raises UserError when masks are missing or differ in size.
    """
    between, against = (ConfusionMatrix(spec.mask_classes) for _ in range(2))
    for index, (path, other) in enumerate(zip(found, baseline, strict=True)):
        mine, theirs = _indices(path, spec), _indices(other, spec)
        if mine.shape != theirs.shape:
            raise UserError("the masks differ in size", seen=f"{mine.shape}, {theirs.shape}")
        between.update(theirs, mine)
        if truth and index in truth:
            _count_truth(against, truth[index], mine, spec)
    judged = Judgement(
        agreement=float(np.trace(between.counts) / between.counts.sum()),
        iou=_ious(between.scores(spec.class_names)),
        differ=_differing(between, spec),
    )
    if not truth:
        return judged
    true = against.scores(spec.class_names)
    return replace(judged, miou=true.foreground_miou, truth_iou=_ious(true))


def _differing(between: ConfusionMatrix, spec: ModelSpec) -> dict[str, int]:
    hits = between.counts.diagonal()
    sides = between.counts.sum(1) + between.counts[:, :-1].sum(0)
    return {
        name: int(count) for name, count in zip(spec.class_names, sides - 2 * hits, strict=True)
    }


def _indices(path: Path, spec: ModelSpec) -> U8:
    if not path.is_file():
        raise UserError("the reference loop or the row left no masks to compare with")
    return class_indices(read_mask(path), spec, path)


def _count_truth(against: ConfusionMatrix, path: Path, mask: U8, spec: ModelSpec) -> None:
    true = true_classes(path, spec)
    if true.shape != mask.shape:
        raise UserError(
            f"{path} and its image differ in size", seen=f"{true.shape}, image {mask.shape}"
        )
    against.update(true, mask)


def _ious(scores: Scores) -> ClassIou:
    return {score.name: score.iou for score in scores.classes}


def least_iou(precision: str) -> float:
    """What each class's IoU to the baseline's masks must reach: fp32 0.999, …, int8 0.9.

    1 - IoU is a distance: no class's IoU to any truth can have fallen by more than 1 - least_iou.
    """
    return round(1 - IOU_FACTOR * (1 - LEAST_AGREEMENT[precision]), 6)


def verdict(judgement: Judgement, baseline: Judgement | None, precision: str) -> str:
    """Why there is no speed-up, or '': the bounds are those of the gate of `build`, and least_iou.

    Agreement alone would not see that a rare class is gone.
    """
    bound = LEAST_AGREEMENT[precision]
    if judgement.agreement < bound:
        return f"agreement below {bound}: no speed-up"
    lost = _lost_class(judgement, least_iou(precision))
    if lost:
        return lost
    if baseline is None or judgement.truth_iou is None or baseline.truth_iou is None:
        return ""
    most = GateOptions().max_iou_drop
    for name, iou in judgement.truth_iou.items():
        before = baseline.truth_iou[name]
        if before is not None and (iou is None or before - iou > most):
            return f"IoU of {name} down by {before - (iou or 0):.3f}: no speed-up"
    return ""


def _lost_class(judgement: Judgement, least: float) -> str:
    for name, iou in judgement.iou.items():
        if iou is not None and iou < least and judgement.differ.get(name, 0) > FEW_PIXELS:
            return f"IoU of {name} to PyTorch's {iou:.4f}, below {least:g}: no speed-up"
    return ""


def truth_masks(
    images: Sequence[Path], folder: Path, masks: Path | None, spec: ModelSpec
) -> dict[int, Path]:
    """The mask of every image that has one in `masks`, by the image's place in `images`.

    Raises UserError when not one of them has, and for masks that no row could be judged by: after
    the measurement that would be too late.
    """
    if masks is None:
        return {}
    pairs = {pair.image: pair.mask for pair in match_pairs(folder, masks)[0]}
    found = {index: pairs[path] for index, path in enumerate(images) if path in pairs}
    if not found:
        raise UserError(
            f"no mask in {masks} belongs to an image of the bench",
            seen=f"{len(images)} images",
            expected="masks of the same names as the images",
        )
    wrong = [_wrong_truth(images[index], mask, spec) for index, mask in found.items()]
    told = [text for text in wrong if text]
    if told:
        raise UserError(
            f"masks in {masks} cannot be judged by",
            seen=listed(told),
            expected="masks of their images' sizes, of the network's values",
            hint="correct them, or leave --masks out",
        )
    return found


def partial_truth(known: int, images: int) -> list[str]:
    """That scores are not of all images, where they are of some; as a note of the report."""
    if known in (0, images):
        return []
    have = "has" if known == 1 else "have"
    whose = f"{known} of the {images} images {have} a mask in --masks"
    return [f"{whose}: the mIoU and the IoU to the truth are of no others"]


def _wrong_truth(image: Path, mask: Path, spec: ModelSpec) -> str:
    """What is wrong with a mask, or ''."""
    try:
        true, size = true_classes(mask, spec), image_size(image)
    except ImageError as error:
        return error.reason
    if true.shape == size:
        return ""
    return f"{mask} has {true.shape[0]}×{true.shape[1]} pixels, its image {size[0]}×{size[1]}"
