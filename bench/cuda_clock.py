"""Rates on a GPU by its own clock: CUDA events on streams that are drained before and after."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.base import Engine
from ..engine.cuda import CudaSlot
from .filled import Batch, FilledSlots

QUEUED = 4
"""Networks queued ahead on a stream: the host never keeps the device waiting, nor runs away.

A stream takes about a thousand launches before it holds the host back: seconds of large products.
"""

WARM_UP = 0.1
"""Part of the seconds that the network alone runs untimed: the device has just run with copies."""


def cuda_slots(slots: FilledSlots) -> list[CudaSlot]:
    """Its slots when they are all on CUDA streams of their own; else none."""
    found = [slot for slot in slots.slots if isinstance(slot, CudaSlot)]
    return found if len(found) == len(slots.slots) else []


def copies_rate(slots: FilledSlots, seconds: float) -> float:
    """Images a second with copies: all slots in flight for `seconds`, then drained."""
    return _timed_rate(cuda_slots(slots), slots.turn, slots.drain, seconds)


def network_rate(engine: Engine, batch: Batch, slots: int, seconds: float) -> float | None:
    """Images a second of the network alone; None where slots are not on CUDA streams.

    The batch lies on the device, masks stay there.
    """
    with FilledSlots(engine, batch, slots) as filled:
        streams = cuda_slots(filled)
        if not streams:
            return None
        for _ in streams:
            filled.turn()
        filled.drain()
        alone = _NetworkAlone(streams, len(batch.images))
        _timed_rate(streams, alone.turn, alone.drain, WARM_UP * seconds)
        return _timed_rate(streams, alone.turn, alone.drain, seconds)


def _timed_rate(
    streams: Sequence[CudaSlot], turn: Callable[[], int], drain: Callable[[], None], seconds: float
) -> float:
    drain()
    first, start, done = streams[0].mark(), time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        done += turn()
    last = [stream.mark() for stream in streams]
    drain()
    for stream, mark in zip(streams, last, strict=True):
        stream.reach(mark)
    return done / max(streams[0].seconds_between(first, mark) for mark in last)


class _NetworkAlone:
    """The network on each stream in turn, at most QUEUED ahead on each."""

    def __init__(self, streams: Sequence[CudaSlot], images: int) -> None:
        self._streams, self._images, self._next = streams, images, 0
        self._marks: deque[tuple[CudaSlot, Any]] = deque()

    def turn(self) -> int:
        stream = self._streams[self._next % len(self._streams)]
        self._next += 1
        stream.queue_network()
        self._marks.append((stream, stream.mark()))
        if len(self._marks) > QUEUED * len(self._streams):
            self._reach_first()
        return self._images

    def drain(self) -> None:
        while self._marks:
            self._reach_first()

    def _reach_first(self) -> None:
        stream, mark = self._marks.popleft()
        stream.reach(mark)


def torch_rate(run: Callable[[], int], device: str, seconds: float) -> float:
    """Images a second of PyTorch calls that queue on the device's stream, by events on it."""
    import torch

    first: Any
    last: Any
    marks: deque[Any] = deque()
    with torch.cuda.device(device):  # else the events lie on the first GPU's stream
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        first.record()
        start, done = time.perf_counter(), 0
        while not done or time.perf_counter() - start < seconds:
            done += run()
            marks.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
            marks[-1].record()
            if len(marks) > QUEUED:
                marks.popleft().synchronize()
        last.record()
        torch.cuda.synchronize(device)
        return done / (float(first.elapsed_time(last)) / 1000)
