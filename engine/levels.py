"""Results of two engines side by side: the masks that they say, and probabilities in levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..contract.spec import ModelSpec
from ..contract.types import NO_CLASS, U8

MAX_LEVEL_ERROR = {"fp32": 0.01, "fp16": 0.15, "bf16": 1.0, "int8": 3.0}
"""Levels of 255 that probabilities may be off PyTorch's, on average over all pixels and classes.

A network of width 16 that was trained on NEU-Seg was off by 0.000004, 0.025, 0.25 and 0.48.
"""


def mask_from_result(found: U8, spec: ModelSpec) -> U8:
    """Masks (H, W) as they are; of probabilities (planes, H, W) the class that they say.

    NO_CLASS where no plane holds a probability.
    """
    if spec.result == "mask":
        return found
    mask: U8
    if spec.classes == 1:
        mask = (found[1] > spec.threshold * 255).astype(np.uint8)
    else:
        mask = found.argmax(0).astype(np.uint8)
    mask[(found == NO_CLASS).all(0)] = NO_CLASS
    return mask


class LevelError:
    """The mean difference of many results, in levels."""

    def __init__(self) -> None:
        self._sum, self._count = 0, 0

    def update(self, expected: U8, found: U8) -> None:
        self._sum += int(np.abs(expected.astype(np.int16) - found).sum())
        self._count += expected.size

    def result(self) -> float:
        return self._sum / max(1, self._count)


@dataclass(frozen=True)
class Difference:
    """How far an engine is off the golden results.

    agreement: share of equal pixels of the masks. level_error: of probabilities, else None.
    """

    agreement: float
    level_error: float | None = None

    def to_gate(self) -> dict[str, float]:
        """What a manifest's gate keeps of it."""
        levels = {} if self.level_error is None else {"golden_level_error": self.level_error}
        return {"golden_agreement": self.agreement, **levels}
