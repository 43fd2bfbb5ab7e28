"""Maxima of 2×2 in PyTorch: by a CUDA kernel of our own where it takes the features."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..contract.log import log

VECTOR = 8
"""Numbers of fp16 that a thread takes of each of four pixels: 16 bytes, the widest load."""
THREADS = 256

SOURCE = """
__device__ unsigned larger(unsigned a, unsigned b) {
    unsigned both;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
    return both;
}

__device__ uint4 larger(uint4 a, uint4 b) {
    return make_uint4(larger(a.x, b.x), larger(a.y, b.y), larger(a.z, b.z), larger(a.w, b.w));
}

extern "C" __global__ void halve(
    const uint4* x, uint4* out, int rows, int height, int width, int vectors
) {
    // A block row is a row of the output: image and row in it are one number.
    int across = (width / 2) * vectors;
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= across) return;
    long long line = (long long)width * vectors;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        long long image = row / (height / 2), y = row % (height / 2);
        const uint4* upper = x + (image * height + 2 * y) * line;
        int place = at / vectors * 2 * vectors + at % vectors;
        uint4 above = larger(upper[place], upper[place + vectors]);
        uint4 below = larger(upper[line + place], upper[line + place + vectors]);
        out[(long long)row * across + at] = larger(above, below);
    }
}
"""
"""Features (N, height, width, 8·vectors) of fp16 → (N, height/2, width/2, 8·vectors).

Of two numbers of which one is NaN that is NaN, as in PyTorch.
"""
MOST_ROWS = 65535
"""gridDim.y at most."""


def halved(x: Tensor) -> Tensor:
    """(N, C, h, w) → (N, C, h/2, w/2), the maxima of 2×2; an odd last row or column is left out.

    PyTorch's own pooling on CUDA also writes where each was, in four times as many bytes.
    """
    fits = x.dtype == torch.float16 and x.shape[1] % VECTOR == 0 and x.is_cuda
    if fits and x.is_contiguous(memory_format=torch.channels_last):
        kernel = _kernel(x.device.index)
        if kernel is not None:
            with torch.cuda.device(x.device):  # it is launched on the stream of the current one
                return _by_kernel(kernel, x)
    height, width = (side // 2 * 2 for side in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _by_kernel(kernel: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    out = torch.empty(
        (batch, channels, height // 2, width // 2),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    rows, vectors = batch * (height // 2), channels // VECTOR
    blocks = -(-(width // 2) * vectors // THREADS)
    kernel(
        grid=(blocks, min(rows, MOST_ROWS), 1),
        block=(THREADS, 1, 1),
        args=[x, out, rows, height, width, vectors],
    )
    return out


@cache
def _kernel(device: int) -> Any:
    """Compiled for a device by NVRTC, which PyTorch brings along; None where that fails."""
    try:
        with torch.cuda.device(device):
            if torch.cuda.get_device_capability() < (8, 0):
                return None  # it has no maximum of two that heeds NaN
            return torch.cuda._compile_kernel(SOURCE, "halve")
    except Exception as error:  # noqa: BLE001  not of PyTorch's public interface: any kind
        log.debug("PyTorch compiles no kernel here: %s", error)
        return None
