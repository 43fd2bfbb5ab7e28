"""Engines for the tests of the batch job: PyTorch with tiny nets, and one without a network."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8, Size
from unetrt.engine.base import Slot
from unetrt.engine.host import HostEngine
from unetrt.engine.torch_backend import TorchEngine
from unetrt.runtime.lending import Loan
from unetrt.runtime.loading import Decoded, Loaded
from unetrt.runtime.plan import Task
from unetrt.runtime.work import Look
from unetrt.training.checkpoint import Checkpoint


class ThresholdEngine(HostEngine):
    """Two classes by the mean of the first channel's rows; what is all 255 is not finite."""

    backend, precision, device = "threshold", "fp32", "cpu"

    def __init__(self, batch: int = 1, slots: int = 2) -> None:
        super().__init__(ModelSpec(channels=1, classes=2, width=1, scale=1.0))
        self.batch, self.slots = batch, slots

    def infer(self, images: U8, masks: U8) -> None:
        for image, mask in zip(images, masks, strict=True):
            mask[:] = NO_CLASS if (image == 255).all() else image[0, 0, 0] % 2


class WatchedEngine(ThresholdEngine):
    """opened: slots so far; most: batches that were in flight at once."""

    opened = most = _flying = 0

    def slot(self) -> Slot:
        self.opened += 1
        made = super().slot()
        submit, masks = made.submit, made.masks

        def start(n: int, size: Size) -> None:
            submit(n, size)
            self._flying += 1
            self.most = max(self.most, self._flying)

        def wait() -> U8:
            self._flying -= 1
            return masks()

        made.submit, made.masks = start, wait  # type: ignore[method-assign]
        return made


@pytest.fixture
def threshold_engine() -> type[ThresholdEngine]:
    return ThresholdEngine


@pytest.fixture
def store() -> Iterator[Any]:
    """fsspec's store in memory, empty before and after."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


def end_loans_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: slots have memory back that writers still look at."""
    back = Loan.__init__

    def early(loan: Loan, give_back: Callable[[], None]) -> None:
        give_back()
        back(loan, lambda: None)

    monkeypatch.setattr(Loan, "__init__", early)


def torch_engine(checkpoint: Checkpoint, batch: int = 1) -> TorchEngine:
    engine = TorchEngine(checkpoint, "cpu")
    engine.batch = batch
    return engine


def decoded(load: Callable[[int], Loaded]) -> Callable[[int], Loaded]:
    """What `load` gives, written where it is wanted."""

    def read(index: int) -> Loaded:
        found = load(index)
        assert not isinstance(found, Decoded)
        image, size = found

        def resized(out: U8 | None) -> U8:
            if out is None:
                return image
            out[:] = image
            return out

        return Decoded((image.shape[0], image.shape[1]), size, resized)

    return read


def write_picture(path: Path, pixels: U8) -> Path:
    """(H, W, C) as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
    return path


def stopping_after(count: int) -> tuple[Look, threading.Event]:
    """A look at every mask, and the wish to stop that it has at the count-th; 0: never."""
    stop, seen = threading.Event(), itertools.count(1)

    def look(task: Task, mask: U8) -> None:
        if next(seen) == count:
            stop.set()

    return look, stop


def class_count(mask: U8) -> int:
    return len(np.unique(mask))
