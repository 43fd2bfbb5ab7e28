"""Samples of more than 8 bits → 8 bits."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ImageError
from .types import U8

Samples: TypeAlias = npt.NDArray[np.uint16]


def bytes_from_samples(samples: Samples, maximum: int, bit_depth: int | None, name: str) -> U8:
    """Scale 0 to `maximum` to 0 to 255: the high byte where all bits are used; any shape.

    bit_depth: of the data, where the file does not say it. Raises ImageError, with the `name` of
    the file, for values above that, and for data whose high bytes would all be black.
    """
    highest = int(samples.max(initial=0))
    if bit_depth is not None and maximum == 65535:
        maximum = (1 << bit_depth) - 1
        if highest > maximum:
            raise ImageError(
                f"{name}: values above {bit_depth} bits",
                seen=f"values up to {highest}",
                hint="--bit-depth 16   where the file uses all of its bits",
            )
    elif maximum == 65535 and highest < 4096 and (samples % 257).any():
        depth = max(8, highest.bit_length())
        raise ImageError(
            f"{name}: data of fewer bits in a 16-bit file: its high bytes are black",
            seen=f"values up to {highest}, {depth} bits",
            hint=f"--bit-depth {depth}   or the depth of the camera, often 10, 12 or 14",
        )
    return (samples.astype(np.uint32) * 256 // (maximum + 1)).astype(np.uint8)
