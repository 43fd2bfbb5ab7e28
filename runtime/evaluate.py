"""Masks against the truth: one confusion matrix over all images of a folder."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.log import log
from ..contract.metrics import ConfusionMatrix, Scores
from ..contract.progress import show_progress
from ..contract.types import U8
from ..engine.base import Engine
from ..training.pairs import (
    Pair,
    checked_pairs,
    is_turned_in_doubt,
    load_pair,
    told_of_turns,
)
from .pipeline import Loaded, PipelineOptions, run_pipeline


@dataclass(frozen=True)
class Evaluation:
    """failures: (image, reason) of the pairs that could not be scored."""

    scores: Scores
    images: int
    failures: list[tuple[Path, str]]

    def to_dict(self) -> dict[str, Any]:
        """The scores, and of how many images they are."""
        failures = [{"input": str(path), "reason": reason} for path, reason in self.failures]
        counts = {"images": self.images, "failed": len(failures), "failures": failures}
        return {**self.scores.to_dict(), **counts}


def evaluate_engine(
    engine: Engine,
    images: Path,
    masks: Path,
    options: PipelineOptions | None = None,
    bit_depth: int | None = None,
) -> Evaluation:
    """Score every pair. Raises UserError when images and masks do not match.

    bit_depth: of 16-bit files whose values fill fewer bits, in place of the spec's.
    """
    pairs = checked_pairs(images, masks)
    spec = engine.spec
    matrix, lock = ConfusionMatrix(spec.mask_classes), threading.Lock()
    truths: dict[Pair, U8] = {}
    in_doubt: list[Pair] = []

    def load(pair: Pair) -> Loaded:
        image, size, truths[pair] = load_pair(pair, spec, bit_depth)
        if is_turned_in_doubt(pair, size):
            in_doubt.append(pair)
        return image, size

    def consume(pair: Pair, mask: U8) -> None:
        truth = truths.pop(pair)
        with lock:
            matrix.update(truth, mask)

    failures = []
    with show_progress("evaluate", len(pairs)) as advance:
        for result in run_pipeline(engine, pairs, load, consume, options):
            advance(1)
            if result.error is not None:
                truths.pop(result.task, None)
                failures.append((result.task.image, result.reason))
    if in_doubt:
        log.warning(told_of_turns(sorted(in_doubt, key=lambda pair: pair.name), len(pairs)))
    return Evaluation(matrix.scores(spec.class_names), len(pairs), failures)
