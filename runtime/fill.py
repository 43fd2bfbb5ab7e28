"""How full a job's batches are: one holds images of one size alone, and is always run whole."""

from __future__ import annotations

from ..contract.log import log

LEAST_BATCHES = 8
"""Fewer say nothing of the images: the last batch of each size is never full."""


class Fill:
    """Counts the places of batches and the images in them."""

    def __init__(self) -> None:
        self._batches = self._images = self._places = 0
        self._told = False

    def add(self, images: int, batch: int) -> None:
        """A batch of so many places has run."""
        self._batches += 1
        self._images += images
        self._places += batch

    def tell(self, min_batch: int) -> None:
        """Warn, once, where more than half of the work was for nothing and need not be."""
        mean = self._images / max(1, self._batches)
        if self._told or self._batches < LEAST_BATCHES or 2 * self._images >= self._places:
            return
        if self._places > min_batch * self._batches:
            self._told = True
            log.warning(
                "batches of %.0f held %.1f images on average, as images of one size are few: "
                "--batch %d does less work",
                self._places / self._batches,
                mean,
                max(min_batch, round(mean)),
            )
