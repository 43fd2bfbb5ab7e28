"""A process that makes masks on one device, for the process that started it."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from ..contract.errors import UserError
from ..contract.log import log, quiet_readers
from ..contract.spec import NO_OVERRIDES, ModelSpec, SpecOverrides
from ..engine.base import Engine
from ..engine.open import open_engine
from .plan import Task
from .stop import SIGNALS
from .work import Outcome, PredictOptions, write_masks

GRACE = 5.0
"""Seconds that a worker has for its end once its parent has gone; one that hangs has no other."""

Pipe: TypeAlias = "Connection[Any, Any]"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How every worker opens the model: see open_engine."""

    model: Path
    backend: str = "auto"
    overrides: SpecOverrides = NO_OVERRIDES


@dataclass(frozen=True)
class Opened:
    """What a worker says first: the engine that it has opened."""

    spec: ModelSpec
    backend: str
    precision: str
    min_batch: int
    label: str
    why: str


def opened_from_engine(engine: Engine) -> Opened:
    return Opened(
        engine.spec,
        engine.backend,
        engine.precision,
        engine.min_batch,
        engine.label,
        engine.why,
    )


@dataclass(frozen=True)
class Want:
    """A worker asks for images. The answer is a list; an empty one says that none is there now."""


@dataclass(frozen=True)
class Warned:
    """A warning, for the log of the process that has the terminal."""

    text: str


Message: TypeAlias = Opened | Want | Warned | Outcome | UserError
"""What a worker says. A UserError is its last word."""


class _ParentGoneError(Exception):
    pass


class Channel:
    """A worker's two pipes. The parent sends PredictOptions, then lists of tasks, then None."""

    def __init__(self, inbox: Pipe, outbox: Pipe) -> None:
        self.stopped = threading.Event()
        self._inbox, self._outbox, self._lock = inbox, outbox, threading.Lock()
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def _listen(self) -> None:
        """A stop is heard while the engine works; a parent that has gone is one too."""
        with suppress(EOFError, OSError):
            while True:
                message = self._inbox.recv()
                if message is None:
                    self._stop()
                else:
                    self._received.put(message)
        self._stop()
        time.sleep(GRACE)
        os._exit(1)

    def _stop(self) -> None:
        self.stopped.set()
        self._received.put(None)

    def options(self) -> PredictOptions | None:
        """None where there is no job."""
        options: PredictOptions | None = self._received.get()
        return options

    def send(self, message: Message) -> None:
        try:
            with self._lock:  # warnings come from any thread
                self._outbox.send(message)
        except OSError as error:
            raise _ParentGoneError from error

    def tasks(self) -> Iterator[Task]:
        """What the parent hands out, until it has nothing more for now."""
        while True:
            self.send(Want())
            tasks = self._received.get()
            if not tasks:
                return
            yield from tasks


class _Relay(logging.Handler):
    """Sends warnings to the parent, which says each of them once."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(_ParentGoneError):
            self._channel.send(Warned(record.getMessage()))


def serve(options: EngineOptions, device: str, threads: int, inbox: Pipe, outbox: Pipe) -> None:
    """Open the model on `device` and work until the parent stops, or has gone.

    Ctrl-C in a terminal reaches every process of a job: the parent alone decides what it means.
    """
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    channel = Channel(inbox, outbox)
    log.handlers[:], log.propagate = [_Relay(channel)], False
    quiet_readers()
    with suppress(_ParentGoneError):
        try:
            with open_engine(
                options.model, options.backend, device, options.overrides, threads
            ) as engine:
                _work(engine, channel)
        except UserError as error:
            channel.send(travelling(error))


def travelling(error: UserError) -> UserError:
    """The error as another process can read it: what was seen may be anything."""
    error.seen = None if error.seen is None else str(error.seen)
    return error


def _work(engine: Engine, channel: Channel) -> None:
    channel.send(opened_from_engine(engine))
    options = channel.options()
    while options is not None and not channel.stopped.is_set():
        stop = channel.stopped.is_set
        for outcome in write_masks(engine, channel.tasks(), options, stop=stop):
            channel.send(outcome)
