"""PyTorch as it is shipped: TF32 in convolutions on a GPU, which is no reference for masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .machine import cuda_device

TF32 = "tf32"
NOTE = " (convolutions in TF32, PyTorch's default; masks compared in strict fp32)"
"""Of a row's label, on CUDA alone."""


@contextmanager
def stock_convolutions(device: str) -> Iterator[bool]:
    """Whether there is a difference: inside it TF32 is on, as PyTorch has it; afterwards it is off.

    A baseline that is slower than what people run would make every speed-up larger.
    """
    if not cuda_device(device):
        yield False
        return
    import torch

    torch.backends.cudnn.allow_tf32 = True
    try:
        yield True
    finally:
        torch.backends.cudnn.allow_tf32 = False
