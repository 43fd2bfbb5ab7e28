"""How many threads PyTorch computes with on the CPU."""

from __future__ import annotations

import torch

from ..contract.cores import granted_threads


def limit_threads(threads: int | None = None) -> None:
    """For the whole process: so many, or None: no more than a container grants."""
    if threads is None:
        granted, now = granted_threads(), torch.get_num_threads()
        threads = now if granted is None else min(granted, now)  # torchrun may have said fewer
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
