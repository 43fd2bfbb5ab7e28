"""Fixtures of the lazy_*.py files, which test_cuda_slot.py runs in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from unetrt.engine.cuda_device import CudaDevice


@pytest.fixture(scope="session")
def session() -> Any:
    """The network that runs as the kernel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        os.environ["LAZY_MODEL"], options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    """The device; when a case ends no context is left current and nothing was freed in use."""
    from tests.cuda.lazy import driver

    opened = CudaDevice()
    yield opened
    opened.close()
    opened.close()
    assert driver.lazy_streams() == 0
    assert driver.lazy_context_depth() == 0
    assert driver.lazy_retained() == 0
    assert driver.lazy_freed_in_flight() == 0
    assert driver.lazy_memory_used() == 0
    assert driver.lazy_pinned_used() == 0
    assert driver.lazy_graphs() == 0
