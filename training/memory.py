"""Errors that say that memory did not suffice, the GPU's or the machine's."""

from __future__ import annotations

from ..contract.memory import tells_of_memory

PIXEL_BYTES = 32
"""Of each pixel of network input and channel of the network's width, predicted on a CPU.

Measured in fp32 at widths of 16 and 64, 1024×1024 and 2048×2048: 29 to 36.
"""


def short_of_memory(error: Exception) -> bool:
    """PyTorch has a class for the GPU's memory alone: of the machine's there are but words."""
    return isinstance(error, MemoryError | RuntimeError) and tells_of_memory(error)
