"""TensorRT and TensorRT-RTX: one Python API under two module names, and their logger."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from ..contract.errors import DeviceMemoryError, UserError
from ..contract.log import log
from ..contract.memory import tells_of_memory
from ..contract.modules import import_module

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Compute capabilities that TensorRT-RTX 1.7 builds for and runs on."""
WITHOUT_BF16 = ("sm75",)
FLOORS = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 4)}
"""Strongly typed networks that take uint8 on both sides, from these versions on."""


def import_flavour(backend: str) -> Any:
    """The module of a backend. Raises UserError when it is missing or too old."""
    module = import_module(MODULES[backend])
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if version < FLOORS[backend]:
        raise UserError(
            f"{backend} is too old",
            seen=module.__version__,
            expected=f"at least {'.'.join(map(str, FLOORS[backend]))}",
        )
    return module


def make_logger(trt: Any, keep: int = 8) -> Any:
    """A logger that keeps the last warnings and errors.

    TensorRT returns None or False on failure and says why in its log only. While `verbose` is
    set, all that it says goes to our log too, at its own severity.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []
            self.errors: list[str] = []
            self.verbose = False

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.messages = [*self.messages[1 - keep :], message.strip()]
            if severity <= trt.ILogger.ERROR:
                self.errors = [*self.errors[1 - keep :], message.strip()]
            if self.verbose:
                log.log(levels[severity], "%s: %s", trt.__name__, message.strip())

    return Logger()


_only_logger = cache(make_logger)


def shared_logger(trt: Any, verbose: bool = False) -> Any:
    """The one logger of a process, emptied.

    While a builder or runtime lives, TensorRT says of any other logger that it is ignored, and
    holds a lock as it says so: Python code that frees a builder just then waits for ever.
    """
    logger = _only_logger(trt)
    logger.messages, logger.errors, logger.verbose = [], [], verbose
    return logger


def check(result: Any, what: str, logger: Any, hint: str | None = None) -> Any:
    """Pass `result` on. Raises UserError with the log's last lines when it is None or False.

    DeviceMemoryError where those lines tell of memory.
    """
    if result is None or result is False:
        # Warnings are of work that went well, but where there is nothing else they may tell.
        seen = "; ".join(logger.errors or logger.messages) or "TensorRT said nothing"
        if tells_of_memory(seen):
            logger.messages, logger.errors = [], []  # or the next would seem one of memory, too
            raise DeviceMemoryError(f"TensorRT failed to {what}", seen=seen, hint=hint)
        raise UserError(f"TensorRT failed to {what}", seen=seen, hint=hint)
    # What it said of work that went well says nothing of a later failure.
    logger.messages, logger.errors = [], []
    return result
