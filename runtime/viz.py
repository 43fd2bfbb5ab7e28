"""Images beside their masks, in a window."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..contract.errors import UserError
from ..contract.images import read_shown
from ..contract.palettes import class_colour
from ..contract.spec import ModelSpec
from ..contract.types import U8
from .plan import Task

FILES_ONLY = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
"""Matplotlib's backends without windows; one of them is taken where there is no display."""


class MaskViewer:
    """Keeps masks while a job runs (any thread) and shows them at its end (the main thread)."""

    def __init__(self, bit_depth: int | None = None) -> None:
        """bit_depth: as the images were read with, see PredictOptions."""
        self._bit_depth = bit_depth
        self._masks: dict[Task, U8] = {}
        self._lock = threading.Lock()

    def keep(self, task: Task, mask: U8) -> None:
        with self._lock:
            self._masks[task] = mask

    @staticmethod
    def require_display() -> None:
        """Raise UserError where matplotlib would draw and show nothing."""
        from matplotlib import pyplot

        backend = pyplot.get_backend().lower()
        if backend in FILES_ONLY:
            raise UserError(
                "--viz needs a display",
                seen=f"matplotlib's {backend}, which shows no window",
                hint="--overlay DIR   writes the images with their masks as files",
            )

    def show(self, spec: ModelSpec) -> None:
        """One window after the other, as closing the last one opens the next."""
        from matplotlib import pyplot

        for task, mask in self._masks.items():
            depth = spec.depth(self._bit_depth)
            image = read_shown(task.source, spec.channels, bit_depth=depth)
            draw_mask(image, mask, spec, str(task.source))
            pyplot.show()
            pyplot.close()


def draw_mask(image: U8, mask: U8, spec: ModelSpec, title: str) -> Any:
    """A matplotlib figure: the image, then its mask in the classes' colours."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, num=title, layout="constrained")
    axes[0].set_title("image")
    axes[0].imshow(image)
    present = [spec.class_names[i] for i in np.unique(mask)]
    axes[1].set_title("mask: " + ", ".join(present))
    axes[1].imshow(coloured_mask(mask))
    return figure


def coloured_mask(mask: U8) -> U8:
    """(H, W) class indices → RGB (H, W, 3) by the colour map of PASCAL VOC."""
    table = np.array([class_colour(i) for i in range(256)], np.uint8)
    coloured: U8 = table[mask]
    return coloured
