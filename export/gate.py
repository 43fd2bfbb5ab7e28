"""The gate: an engine is published only if its masks are those of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..contract.errors import GateError
from ..contract.metrics import ConfusionMatrix
from ..contract.spec import ModelSpec
from ..contract.types import NO_CLASS, U8, Size
from ..engine.base import Engine
from ..engine.levels import MAX_LEVEL_ERROR, LevelError, mask_from_result
from ..engine.probe import precision_flags
from .borders import BorderCount, BorderGate

MIN_AGREEMENT = {"fp32": 0.9999, "fp16": 0.9995, "bf16": 0.998, "int8": 0.99}
"""Share of pixels equal to fp32 PyTorch's that a trained network keeps in each precision."""

MIN_CLASS_IOU = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.97, "int8": 0.9}
"""IoU between the two masks that each class keeps: a rare one that is lost hardly shows in all."""

MIN_CLASS_PIXELS = 500
"""Of a class in the reference's masks; with fewer, its border alone decides its IoU."""

PYTORCH = "PyTorch"
"""The reference of what is built from a checkpoint: fp32, on the CPU."""

Verdict = Literal["passed", "failed", "graph-only"]


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """images, masks: folders to judge on; without images, the checkpoint's golden inputs.

    min_agreement: None takes MIN_AGREEMENT of the precision. min_class_iou: of each class between
    the two masks; None takes MIN_CLASS_IOU, loosened as much as min_agreement is.
    max_iou_drop: of any class against the masks. force: publish what failed, with the verdict
    inside.
    """

    images: Path | None = None
    masks: Path | None = None
    min_agreement: float | None = None
    min_class_iou: float | None = None
    max_iou_drop: float = 0.01
    force: bool = False

    def agreement_bound(self, precision: str) -> float:
        return MIN_AGREEMENT[precision] if self.min_agreement is None else self.min_agreement

    def class_bound(self, precision: str) -> float:
        """0 bounds nothing. Who allows ten times the wrong pixels allows it of each class too."""
        if self.min_class_iou is not None:
            return self.min_class_iou
        allowed = (1 - self.agreement_bound(precision)) / (1 - MIN_AGREEMENT[precision])
        return round(max(0.0, 1 - (1 - MIN_CLASS_IOU[precision]) * max(1.0, allowed)), 6)


@dataclass(frozen=True)
class GateCase:
    """A network input, its mask's size, and the true class indices where they are known."""

    image: U8
    size: Size
    truth: U8 | None = None


@dataclass(frozen=True, kw_only=True)
class ClassGate:
    """iou: between the two masks; iou_drop: reference minus engine, each against the truth.

    pixels: of the class in the reference's masks or in the engine's, whichever has more.
    """

    name: str
    iou: float | None
    iou_drop: float | None
    pixels: int = 0

    @property
    def counts(self) -> bool:
        """Whether there is enough of the class for its IoU to say something."""
        return self.pixels >= MIN_CLASS_PIXELS


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """gate.json. inputs: images, golden or synthetic; ran_on: the engine that was judged.

    not_finite: images with a NaN or an infinity in the logits, whose mask is no class at all.
    level_error: of probabilities, whose masks are what they say; None where masks come.
    reference: whose masks it was compared with.
    """

    verdict: Verdict
    inputs: str
    ran_on: str
    images: int
    agreement: float
    min_agreement: float
    max_iou_drop: float
    not_finite: int
    borders: BorderGate
    classes: tuple[ClassGate, ...]
    level_error: float | None = None
    max_level_error: float | None = None
    min_class_iou: float = 0.0
    reference: str = PYTORCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> GateResult:
        """Raise TypeError or KeyError for what is no gate.json."""
        classes = tuple(ClassGate(**score) for score in raw["classes"])
        return cls(**{**raw, "borders": BorderGate(**raw["borders"]), "classes": classes})

    @property
    def unseen(self) -> list[str]:
        """Classes of which no image held enough to judge their masks."""
        return [score.name for score in self.classes if not score.counts]

    @property
    def failures(self) -> list[str]:
        """Why it did not pass, a sentence each."""
        found = []
        if self.agreement < self.min_agreement:
            found.append(f"{self.agreement:.4%} of the pixels equal, not {self.min_agreement:.4%}")
        if self.not_finite:
            found.append(f"{self.not_finite} images whose output is not finite")
        if self.level_error is not None and self.level_error > (self.max_level_error or 0):
            bound = f"not {self.max_level_error}"
            found.append(f"probabilities off by {self.level_error:.2f} levels of 255, {bound}")
        ious = [(c.name, c.iou) for c in self.classes if c.iou is not None and c.counts]
        least, whose = self.min_class_iou, f"to the masks of {self.reference}"
        found += [f"IoU of {n} {whose} {iou:.4f}, not {least}" for n, iou in ious if iou < least]
        drops = [(c.name, c.iou_drop) for c in self.classes if c.iou_drop is not None]
        found += [f"IoU of {n} down by {d:.4f}" for n, d in drops if d > self.max_iou_drop]
        return found

    def error(self, directory: Path) -> RefusedError:
        return RefusedError(self, directory)


def judged_hint(inputs: str) -> str:
    """What begins the hint of an engine that was refused: '', or that drawn pictures judge ill.

    On what a network has not learned it hardly decides: rounding shows more than on its own.
    """
    drawn = inputs == "synthetic"
    return "--gate-images DIR   judges on yours, not on drawn pictures; or " if drawn else ""


def _more_precise(result: GateResult) -> str:
    """What builds an engine that rounds less: '' of one in fp32. An fp16 graph becomes none."""
    backend, precision = result.ran_on.split()[:2]
    if precision == "fp32":
        return ""
    if precision == "fp16" and result.reference != PYTORCH:
        return "unetrt build CHECKPOINT …   keeps in fp32 what needs it; or "
    return f"{precision_flags('fp32', backend)}, or "


class RefusedError(GateError):
    """An engine that did not pass, with what was found."""

    def __init__(self, result: GateResult, directory: Path) -> None:
        super().__init__(
            f"the gate did not pass: {directory} was not written",
            seen="; ".join(result.failures),
            expected=f"masks like those of {result.reference}",
            hint=judged_hint(result.inputs)
            + f"{_more_precise(result)}--min-agreement / --min-class-iou / --max-iou-drop, "
            "or --force to publish it with this verdict",
        )
        self.result = result


def judge_engine(
    reference: Engine,
    engine: Engine,
    cases: Iterable[GateCase],
    *,
    inputs: str,
    options: GateOptions,
    graph_only: bool = False,
    rounded: Engine | None = None,
    reference_name: str = PYTORCH,
) -> GateResult:
    """Run both over the cases, one at a time, and compare their masks.

    graph_only: `engine` stands in for a plan that cannot run on this machine. rounded: gives
    NO_CLASS where the network exceeds the range of its precision, which `engine` may not notice.
    """
    spec, precision = reference.spec, engine.precision
    between, before, after = (ConfusionMatrix(spec.mask_classes) for _ in range(3))
    borders, levels = BorderCount(), LevelError()
    images = not_finite = 0
    engines = [reference, engine, *([] if rounded is None else [rounded])]
    with ExitStack() as stack:
        runs = [stack.enter_context(each.running()) for each in engines]
        for case in cases:
            results = [run(case.image, case.size) for run in runs]
            levels.update(*results[:2])
            expected, found, *more = (mask_from_result(result, spec) for result in results)
            between.update(expected, found)
            borders.update(expected, found)
            images += 1
            not_finite += any((mask == NO_CLASS).any() for mask in (found, *more))
            if case.truth is not None:
                before.update(case.truth, expected)
                after.update(case.truth, found)
    prob = spec.result == "prob"
    judged = GateResult(
        verdict="graph-only" if graph_only else "passed",
        inputs=inputs,
        ran_on=engine.label,
        images=images,
        agreement=_agreement(between),
        min_agreement=options.agreement_bound(precision),
        max_iou_drop=options.max_iou_drop,
        not_finite=not_finite,
        borders=borders.result(),
        classes=_class_gates(spec, between, before, after),
        level_error=levels.result() if prob else None,
        max_level_error=MAX_LEVEL_ERROR[precision] if prob else None,
        min_class_iou=options.class_bound(precision),
        reference=reference_name,
    )
    return _failed(judged) if judged.failures else judged


def _agreement(between: ConfusionMatrix) -> float:
    total = int(between.counts.sum())
    return float(np.trace(between.counts) / total) if total else 0.0


def _class_gates(
    spec: ModelSpec, between: ConfusionMatrix, before: ConfusionMatrix, after: ConfusionMatrix
) -> tuple[ClassGate, ...]:
    names = spec.class_names
    rows = zip(*(matrix.scores(names).classes for matrix in (between, before, after)), strict=True)
    # Of both: a class that the engine alone gives is as wrong as one that it misses.
    sides = np.maximum(between.counts.sum(1), between.counts[:, : spec.mask_classes].sum(0))
    pixels = [int(count) for count in sides]
    return tuple(
        ClassGate(name=b.name, iou=b.iou, iou_drop=_drop(old.iou, new.iou), pixels=count)
        for (b, old, new), count in zip(rows, pixels, strict=True)
    )


def _drop(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else old - new


def _failed(result: GateResult) -> GateResult:
    return replace(result, verdict="failed")
