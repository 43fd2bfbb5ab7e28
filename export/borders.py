"""Where two masks differ: at the borders between classes, or inside of them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..contract.types import NO_CLASS, U8

REACH = 2
"""Pixels: a border is all that lies at most so far from another class, diagonals too."""


@dataclass(frozen=True, kw_only=True)
class BorderGate:
    """Shares of pixels that differ, of those at borders of the reference mask and of the others.

    share: of all pixels, those at borders. None where there is no such pixel.
    """

    reach: int
    share: float | None
    at_border: float | None
    inside: float | None


def border_of(mask: U8, reach: int = REACH) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) whose square of 2·reach + 1 pixels holds more than one class."""
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return np.asarray(cv2.dilate(mask, square) != cv2.erode(mask, square))


class BorderCount:
    """Pixels and differing pixels of many masks, at borders and inside."""

    def __init__(self, reach: int = REACH) -> None:
        self.reach = reach
        self._pixels, self._different = [0, 0], [0, 0]

    def update(self, expected: U8, found: U8) -> None:
        """Count two masks of one shape; pixels that are NO_CLASS in `expected` are left out."""
        known, different = expected != NO_CLASS, expected != found
        border = border_of(expected, self.reach)
        for index, part in enumerate((border & known, ~border & known)):
            self._pixels[index] += int(np.count_nonzero(part))
            self._different[index] += int(np.count_nonzero(part & different))

    def result(self) -> BorderGate:
        return BorderGate(
            reach=self.reach,
            share=_share(self._pixels[0], sum(self._pixels)),
            at_border=_share(self._different[0], self._pixels[0]),
            inside=_share(self._different[1], self._pixels[1]),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
