"""What runs in a Ray cluster's processes: load, infer and write, an image a row."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..contract.addresses import is_address
from ..contract.errors import ImageError, UserError
from ..contract.log import log
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from ..engine.base import Engine
from ..engine.open import open_engine
from ..engine.probe import memory_of
from .budget import SHARE
from .pipeline import Pipeline, Result
from .plan import Task
from .stamps import Stamp
from .work import Outcome, PredictOptions, Work
from .worker import EngineOptions, Opened, opened_from_engine, travelling

ROW = "row"
"""The one column: what follows, pickled. Arrow has no type for images of many shapes."""

INFER_BATCH = 128
"""Images that an engine gets at once: many of its batches, so that its slots stay full."""

INFER_BYTES = 128 << 20
"""Of large images fewer: no more than one of Ray's blocks holds."""

SAMPLE = 8
"""Images that are looked at for their size, from all over the list."""

PREFIX = "unetrt-model-"
"""Of the folder that a model is unpacked into."""


@dataclass(frozen=True)
class LoadedImage:
    """A task with its network input (h, w, C) and the (H, W) that its mask is to have."""

    task: Task
    stamp: Stamp
    image: U8
    size: Size


@dataclass(frozen=True)
class InferredMask:
    """A task with its mask (H, W), or probabilities (C, H, W)."""

    task: Task
    stamp: Stamp
    mask: U8


Row: TypeAlias = Task | LoadedImage | InferredMask | Outcome | UserError
"""A task on its way. An Outcome is past everything that is left to do, a UserError ends the job.

Ray would wrap an error that is raised, with its traceback, in one of its own.
"""

RayRow: TypeAlias = dict[str, bytes]


def absolute_task(task: Task) -> Task:
    """For processes of the cluster, which have the working folder of who started it."""
    output, overlay = (path and _absolute(path) for path in (task.output, task.overlay))
    return Task(_absolute(task.source), output, overlay)


def _absolute(path: Path) -> Path:
    return path if is_address(path) else path.absolute()


def packed(row: Row) -> RayRow:
    return {ROW: pickle.dumps(row, pickle.HIGHEST_PROTOCOL)}


def unpacked(data: bytes) -> Any:
    return pickle.loads(data)


@dataclass(frozen=True)
class ShippedModel:
    """A model's files as bytes: no folder needs to be shared by the cluster's machines."""

    name: str
    archive: bytes

    def open(self, options: EngineOptions, device: str, threads: int) -> Engine:
        """Unpack into a folder of this process, and open. Raises UserError as open_engine does."""
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            with tarfile.open(fileobj=BytesIO(self.archive)) as archive:
                archive.extractall(folder, filter="data")
            path = Path(folder, self.name)
            return open_engine(path, options.backend, device, options.overrides, threads)


def ship_model(path: Path) -> ShippedModel:
    """What links lead to, under their names: on another machine they lead nowhere."""
    path = Path(os.path.normpath(path.absolute()))  # that of the working folder has no name
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        archive.add(path, path.name)
    return ShippedModel(path.name, buffer.getvalue())


def code_digest() -> str:
    """Of the sources that a job's processes share: rows go from one to the other as pickles."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in ("contract", "engine", "runtime"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def another_code(seen: str) -> UserError:
    return UserError(
        "the cluster's machines do not have this unetrt",
        seen=seen,
        expected="the same version on every machine, as here",
        hint="pip install -c constraints.txt '.[ray]'   in the clone, on each; then ray start",
    )


def open_once(
    model: ShippedModel, options: EngineOptions, device: str, threads: int
) -> tuple[Opened, list[str]]:
    """What the model is and what is to be warned of, said by a machine that can run it."""
    kept = BufferingHandler(sys.maxsize)  # what a process of the cluster logs is seen by nobody
    kept.setLevel(logging.WARNING)
    log.addHandler(kept)
    try:
        with model.open(options, device, threads) as engine:
            opened = opened_from_engine(engine)
    finally:
        log.removeHandler(kept)
    # Named as the user knows it: where it was unpacked is gone.
    unpacked_at = rf"\S*/{PREFIX}[^/\s]+/{re.escape(model.name)}"
    texts = [record.getMessage() for record in kept.buffer]
    return opened, [re.sub(unpacked_at, lambda _: str(options.model), text) for text in texts]


def load_row(row: RayRow, spec: ModelSpec, options: PredictOptions) -> RayRow:
    """Task → LoadedImage, or the Outcome of an image that cannot be used; or a UserError."""
    task: Task = unpacked(row[ROW])
    work = Work(spec, options)
    try:
        decoded = work.load(task)
        image, size = decoded.resized(None), decoded.size
    except ImageError as error:
        return packed(work.outcome(Result(task, error)))
    except UserError as error:
        return packed(travelling(error))
    return packed(LoadedImage(task, work.stamps[task], image, size))


def rows_for(tasks: Sequence[Task], spec: ModelSpec, options: PredictOptions) -> int:
    """How many images an engine gets at once, by the largest of some: Ray Data counts rows.

    Ray holds an actor's batch in memory whole, as it came, unpickled, and its masks.
    """
    work, most = Work(spec, options), 1
    for task in tasks[:: max(1, len(tasks) // SAMPLE)][:SAMPLE]:
        with suppress(UserError):  # who is to load it says why
            found = work.load(task)
            image_bytes = math.prod(found.input_size) * spec.channels
            most = max(most, image_bytes + math.prod(found.size) * max(1, spec.planes))
    return max(1, min(INFER_BATCH, INFER_BYTES // most))


class InferRows:
    """An actor's engine: LoadedImage → InferredMask, in batches of one size, slots in flight."""

    def __init__(
        self,
        model: Callable[[], ShippedModel],
        engine: EngineOptions,
        options: PredictOptions,
        device: str,
        threads: int,
    ) -> None:
        self._engine: Engine | UserError
        try:
            self._engine = model().open(engine, device, threads)
        except UserError as error:
            self._engine = travelling(error)
        # Of this machine, which the job's own may have little in common with.
        memory = memory_of(threads) // SHARE
        self._options = replace(options.pipeline, load_threads=1, write_threads=1, memory=memory)
        self._masks: dict[Task, U8] = {}
        self._pipeline: Pipeline[LoadedImage] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [unpacked(data) for data in batch[ROW]]
        images = [row for row in rows if isinstance(row, LoadedImage)]
        done: list[Row] = [row for row in rows if not isinstance(row, LoadedImage)]
        try:
            done += [self._row(result) for result in self._infer(images)]
        except UserError as error:
            done.append(travelling(error))
        return {ROW: np.array([packed(row)[ROW] for row in done], dtype=object)}

    def _infer(self, images: list[LoadedImage]) -> list[Result[LoadedImage]]:
        """The slots stay from batch to batch, unless one has failed."""
        if isinstance(self._engine, UserError):
            raise self._engine
        if self._pipeline is None:
            self._pipeline = Pipeline(
                self._engine,
                lambda row: (row.image, row.size),
                lambda row, mask: self._masks.__setitem__(row.task, mask),
                self._options,
                lambda: False,
            )
        try:
            return list(self._pipeline.run(iter(images)))
        except BaseException:
            self._pipeline.close()
            self._pipeline = None
            raise

    def _row(self, result: Result[LoadedImage]) -> Row:
        loaded = result.task
        if result.error is not None:
            return Outcome(loaded.task, result.reason, loaded.stamp)
        return InferredMask(loaded.task, loaded.stamp, self._masks.pop(loaded.task))


def write_row(row: RayRow, spec: ModelSpec, options: PredictOptions) -> RayRow:
    """InferredMask → Outcome, its files in place; or a UserError."""
    found = unpacked(row[ROW])
    if not isinstance(found, InferredMask):
        return row
    work = Work(spec, options)
    work.stamps[found.task] = found.stamp
    try:
        work.consume(found.task, found.mask)
    except ImageError as error:
        return packed(work.outcome(Result(found.task, error)))
    except UserError as error:
        return packed(travelling(error))
    return packed(work.outcome(Result(found.task)))
