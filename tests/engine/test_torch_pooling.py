"""Maxima of 2×2: PyTorch's own, and the kernel's arithmetic on a stand-in for a GPU's threads."""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.cuda import _utils

from unetrt.engine.torch_pooling import MOST_ROWS, SOURCE, VECTOR, _by_kernel, _kernel, halved

STAND_IN = r"""
#include <cmath>
#include <cstring>
#define __device__ static
#define __global__
struct uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct Place { int x, y; };
static Place blockIdx, blockDim, threadIdx, gridDim;

static unsigned short larger_half(unsigned short a, unsigned short b) {
    _Float16 x, y;
    memcpy(&x, &a, 2);
    memcpy(&y, &b, 2);
    if (x != x || y != y) return 0x7fff;
    return x < y ? b : a;
}

static unsigned larger_pair(unsigned a, unsigned b) {
    return larger_half(a, b) | (unsigned)larger_half(a >> 16, b >> 16) << 16;
}
"""
LAUNCH = r"""
extern "C" void launch(int blocks, int lines, int threads, const uint4* x, uint4* out, int rows,
                       int height, int width, int vectors) {
    gridDim = {blocks, lines};
    blockDim = {threads, 1};
    for (blockIdx.y = 0; blockIdx.y < lines; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
                halve(x, out, rows, height, width, vectors);
}
"""


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """The kernel's own source, one thread after the other; its one instruction by the compiler."""
    if shutil.which("g++") is None:
        pytest.skip("no g++: the kernel's source is not compiled")
    asm = re.compile(r'asm\("max\.NaN\.f16x2 .*\);')
    assert len(asm.findall(SOURCE)) == 1
    source = STAND_IN + asm.sub("both = larger_pair(a, b);", SOURCE) + LAUNCH
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "halve.cpp").write_text(source)
    library = folder / "halve.so"
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover", str(folder / "halve.cpp"), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "_Float16" in built.stderr:
        pytest.skip("this g++ has no _Float16")
    assert built.returncode == 0, built.stderr
    run = ctypes.CDLL(str(library)).launch

    def kernel(grid: Any, block: Any, args: list[Any]) -> None:
        assert grid[1] <= MOST_ROWS
        pointers = [ctypes.c_void_p(value.data_ptr()) for value in args[:2]]
        run(grid[0], grid[1], block[0], *pointers, *args[2:])

    return kernel


def features(shape: tuple[int, ...], seed: int, nan: bool) -> Tensor:
    """(N, C, h, w) of fp16, channels last."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(0, 1000, shape).astype(np.float16)
    if nan:
        numbers[generator.random(shape) < 0.05] = np.nan
        numbers[generator.random(shape) < 0.05] = np.inf
    return torch.from_numpy(numbers).contiguous(memory_format=torch.channels_last)


SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 40))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, channels=st.integers(1, 20), seed=st.integers(0, 99), nan=st.booleans())
def test_the_maxima_are_those_of_pytorchs_pooling(
    shape: tuple[int, int, int], channels: int, seed: int, nan: bool
) -> None:
    x = features((shape[0], channels, *shape[1:]), seed, nan)
    found = halved(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, vectors=st.integers(1, 5), seed=st.integers(0, 99), nan=st.booleans())
def test_the_kernel_gives_them(
    launch: Callable[..., None],
    shape: tuple[int, int, int],
    vectors: int,
    seed: int,
    nan: bool,
) -> None:
    x = features((shape[0], VECTOR * vectors, *shape[1:]), seed, nan)
    found = _by_kernel(launch, x)
    torch.testing.assert_close(found, F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)


def test_more_rows_than_a_grid_has(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.engine.torch_pooling.MOST_ROWS", 3)
    x = features((5, VECTOR, 8, 6), 0, nan=False)
    torch.testing.assert_close(_by_kernel(launch, x), F.max_pool2d(x, 2), rtol=0, atol=0)


def test_a_row_of_more_than_one_block(launch: Callable[..., None]) -> None:
    x = features((1, 16 * VECTOR, 2, 101), 1, nan=False)
    torch.testing.assert_close(_by_kernel(launch, x), F.max_pool2d(x, 2), rtol=0, atol=0)


def test_this_pytorch_compiles_and_launches_as_it_is_asked() -> None:
    """By an interface that is not public; numbers are passed as C's int, which the kernel takes."""
    inspect.signature(torch.cuda._compile_kernel).bind(SOURCE, "halve")
    launched: list[dict[str, Any]] = []
    x = features((1, VECTOR, 4, 6), 0, nan=False)
    _by_kernel(lambda **arguments: launched.append(arguments), x)
    (arguments,) = launched
    inspect.signature(_utils._CudaKernel.__call__).bind(None, **arguments)
    assert all(type(value) is int for value in arguments["args"][2:])
    assert all(type(value) is int for value in (*arguments["grid"], *arguments["block"]))


def test_without_a_gpu_there_is_no_kernel() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert _kernel.__wrapped__(0) is None


def test_nvcc_takes_the_source(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc here")
    (tmp_path / "halve.cu").write_text(SOURCE)
    command = ["nvcc", "-arch=sm_80", "-ptx", "halve.cu", "-o", "halve.ptx"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert "max.NaN.f16x2" in (tmp_path / "halve.ptx").read_text()
