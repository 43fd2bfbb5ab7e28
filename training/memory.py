"""Errors that say that memory did not suffice, the GPU's or the machine's."""

from __future__ import annotations

from ..contract.memory import tells_of_memory


def short_of_memory(error: Exception) -> bool:
    """PyTorch has a class for the GPU's memory alone: of the machine's there are but words."""
    return isinstance(error, MemoryError | RuntimeError) and tells_of_memory(error)
