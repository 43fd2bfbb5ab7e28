"""How much memory there is, and the errors that say that it did not suffice."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress

from .groups import group_files
from .spec import ModelSpec
from .types import Size

_UNKNOWN = 8 << 30

NO_ENGINE = "unable to find an engine"
"""PyTorch, where cuDNN has no way to compute a convolution, or none finds room beside it."""
# The last two: oneDNN and OpenVINO without memory for the code that they generate.
_NO_MEMORY = re.compile(
    r"(failed to|can't|cannot|could not) allocate|bad.alloc"
    r"|(out ?of ?|not enough |insufficient )memory|alloc(ation)?_failed"
    rf"|memory .*could not be allocated|not be enough free memory|{NO_ENGINE}"
    r"|could not create a primitive|broken promise",
    re.IGNORECASE,
)


def memory_bytes() -> int:
    """The memory of this machine, or of the container or a scheduler's job that this is.

    8 GiB where nothing tells.
    """
    found = []
    for path in group_files("memory", "memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(path.read_text(encoding="ascii")))
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=_UNKNOWN)


LOGIT_BYTES = {"mask": 8, "prob": 16}
"""Of each logit, once resized to the mask, that the host holds beside the network.

Measured with 20 classes at width 8, whole and half size: 4 to 8 for masks, 6 to 16 for
probabilities.
"""


def run_bytes(spec: ModelSpec, pixel_bytes: int, input_size: Size, size: Size) -> int:
    """Of the host's memory that an image of such sizes takes while its network runs, about.

    pixel_bytes: that the network takes for each pixel of its input.
    """
    pixels = math.prod(input_size)
    planes = spec.planes or (spec.classes if spec.classes > 2 else 1)
    logits = planes * max(pixels, math.prod(size))
    return pixels * pixel_bytes + logits * LOGIT_BYTES[spec.result]


def tells_of_memory(error: Exception | str) -> bool:
    """Whether any library's error says that memory did not suffice: few have a class for it."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None
