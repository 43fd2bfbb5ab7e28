"""TensorRT and TensorRT-RTX: one Python API under two module names, and their logger."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..contract.errors import UserError
from ..contract.modules import import_module

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Compute capabilities that TensorRT-RTX 1.7 builds for and runs on."""
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

    TensorRT returns None or False on failure and says why in its log only.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.messages = [*self.messages[1 - keep :], message.strip()]

    return Logger()


_only_logger = cache(make_logger)


def shared_logger(trt: Any) -> Any:
    """The one logger of a process, emptied.

    While a builder or runtime lives, TensorRT says of any other logger that it is ignored, and
    holds a lock as it says so: Python code that frees a builder just then waits for ever.
    """
    logger = _only_logger(trt)
    logger.messages = []
    return logger


def check(result: Any, what: str, logger: Any, hint: str | None = None) -> Any:
    """Pass `result` on. Raises UserError with the log's last lines when it is None or False."""
    if result is None or result is False:
        seen = "; ".join(logger.messages) or "TensorRT said nothing"
        raise UserError(f"TensorRT failed to {what}", seen=seen, hint=hint)
    return result
