"""PyTorch's rates by events, on a stand-in for torch.cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from unetrt.bench.cuda_clock import torch_rate


def test_events_lie_on_the_stream_of_the_device_that_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a rate of cuda:1 would be taken from an idle cuda:0."""
    current = ["cuda:0"]
    used: list[str] = []

    @contextmanager
    def chosen(device: str) -> Iterator[None]:
        before, current[0] = current[0], device
        yield
        current[0] = before

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            pass

        def record(self) -> None:
            used.append(current[0])

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, last: object) -> float:
            return 500.0

    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def run() -> int:
        used.append(current[0])
        return 3

    assert torch_rate(run, "cuda:1", 0.0) == 6
    assert set(used) == {"cuda:1"}
