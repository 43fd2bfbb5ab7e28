"""How many images the device has memory for at once: what a run finds out as it goes."""

from __future__ import annotations

import gc

from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.log import log
from ..contract.memory import memory_bytes
from ..contract.types import Size

MOST_UNFIT = 100
"""Images that find no memory, one by one, before the job ends where none has ever fitted."""

SLOW = 300_000_000
"""Nanoseconds of a batch, with those that it waits for, from which on no spare slot is used."""


class Fit:
    """batch: images a slot; count: slots. Both shrink where the device has no memory for them.

    spare: of the slots those that are left empty while batches are slow, as a stop waits for all.
    An image for which not even the least is enough costs itself alone: what ran before it is
    taken up again. error: of the latest of them. memory: bytes that the host has.
    """

    def __init__(self, batch: int, count: int, least: int, spare: int = 0) -> None:
        self.batch, self.count = batch, count + spare
        self._asked, self._least = (batch, self.count), least
        self._lean, self._slow = count, True  # until a batch has been quick
        self._proven: tuple[int, int] | None = None
        self.error: UserError | None = None
        self.memory = memory_bytes()  # asked once: a container's limit is a file

    @property
    def proven(self) -> bool:
        """Whether anything has ever fitted."""
        return self._proven is not None

    def ran(self, batch: int, slots: int, nanoseconds: int) -> None:
        """So many images fitted into each of so many slots; one took so long, and its turn."""
        self._proven = max(self._proven or (0, 0), (batch, slots))
        self._slow = nanoseconds > SLOW

    def widen(self, count: int) -> None:
        """More slots, for an image that turned out to be cut."""
        self.count = self._lean = count

    def enough(self, flying: int) -> bool:
        """Whether so many batches are all that are to be in flight."""
        return self._slow and flying >= self._lean

    def shrink(self, batch: int, slots: int, error: UserError) -> bool:
        """Half of the batch that found none, then one slot. False: neither is possible."""
        half = batch // 2
        if half >= self._least:
            self.batch, now = half, f"{half} images a batch"
        elif slots > 1:
            self.count, now = 1, "one batch at a time"
        else:
            return False
        log.warning("%s: from now on %s", error.reason, now)
        return True

    def refuse(self, size: Size, error: UserError) -> ImageError:
        """The error of an image of `size` (H, W) for which the least is too much.

        error: without frames.
        """
        self.error = error
        found = no_memory(size, error.seen or error.reason)
        if self.take_up_again():
            again = "%s: for the others %d images a batch again, batches at once: %d"
            log.warning(again, found.message, self.batch, self.count)
        return found

    def take_up_again(self) -> bool:
        """What ran before, or was asked for, since what needed less is out of the way.

        Whether it is more than now.
        """
        before = (self.batch, self.count)
        self.batch, self.count = self._proven or self._asked
        return (self.batch, self.count) != before


def forget_frames(error: DeviceMemoryError) -> None:
    """They hold images, and what a network had computed of them when it found no memory."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    gc.collect()


def no_memory(size: Size, seen: object) -> ImageError:
    height, width = size
    return ImageError(
        f"no memory for an image of {height}×{width} pixels",
        seen=seen,
        hint="cut it into smaller images, or take a device with more memory",
    )


def refuse_batch(fit: Fit, image_bytes: int, size: Size) -> ImageError | None:
    """Of a batch that was asked for and whose images alone, of `size` (H, W), fill the memory.

    An error of the image where others have fitted; raises UserError where none has yet.
    """
    memory, batch = fit.memory, fit.batch
    if batch * image_bytes > memory:
        seen = f"{batch * image_bytes / 2**30:.1f} GiB of images in a batch"
        if fit.proven:
            return no_memory(size, seen)
        most = max(1, memory // image_bytes // 4)
        raise UserError(
            f"no memory for {batch} images a batch",
            seen=seen,
            expected=f"less than {memory / 2**30:.1f} GiB, with all that the network adds",
            hint=f"--batch {min(most, 64)}   or leave --batch out",
        )
    return None
