"""JPEG files at reduced size: only for a model whose masks stay, measured on the job's own images.

The decoder halves an image in its frequencies, not by the spec's resize kernel: what the network
sees differs a little, and what that does to the masks depends on the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.images import read_reduced
from ..contract.log import log
from ..contract.resize import checked_input_size, network_input, resize_image
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from ..engine.base import Engine
from .plan import Task

CHECKED = 16
"""Images that are measured, spread over the job."""

LOOKED_AT = 64
"""Images that are read to find them: other files, and small ones, are not reduced."""

LEAST_AGREEMENT = 0.995
"""Share of equal pixels over all of them. On a trained net bf16 kept 0.9996 of them, int8 0.990 to
0.998."""

LEAST_OF_ONE = 0.98
"""The same in the worst image, which a mean hides. Of 60 of NEU-Seg a trained net kept 0.9976."""


@dataclass
class Measured:
    """Shares of equal pixels, one an image; short: for some there was no memory."""

    agreements: list[float] = field(default_factory=list)
    short: bool = False


def require_fast_decode(engine: Engine | None, tasks: Sequence[Task]) -> bool:
    """Whether it was measured, and may be used. Say what was seen, or why nothing was measured.

    Raises UserError where masks from reduced images differ too much. engine is None for a job of
    several processes, which has nothing to measure with.
    """
    if engine is None:
        raise UserError("--fast-decode goes with one process", hint="leave --fast-decode out")
    if engine.spec.result != "mask":
        hint = "leave --fast-decode out"
        raise UserError("--fast-decode is measured on masks", seen="probabilities", hint=hint)
    measured = measure_fast_decode(engine, tasks)
    if not measured.agreements:
        why = "none of the images looked at is a JPEG of twice the input's size"
        if measured.short:
            why = "there is no memory to measure it with"
        log.warning("fast decode: %s, so every image is decoded whole", why)
        return False
    _check(measured.agreements)
    return True


def _check(agreements: Sequence[float]) -> None:
    mean, worst = float(np.mean(agreements)), min(agreements)
    seen = f"{mean:.3%} of the pixels of {len(agreements)} images equal, {worst:.3%} in the worst"
    if mean < LEAST_AGREEMENT or worst < LEAST_OF_ONE:
        raise UserError(
            "fast decode changes this model's masks too much",
            seen=seen,
            expected=f"at least {LEAST_AGREEMENT:.1%}, and {LEAST_OF_ONE:.0%} in the worst",
            hint="leave --fast-decode out",
        )
    log.warning("fast decode keeps the masks: %s", seen)


def measure_fast_decode(engine: Engine, tasks: Sequence[Task]) -> Measured:
    """Up to CHECKED images that come reduced, each with its own size."""
    found = Measured()
    spread = tasks[:: max(1, len(tasks) // LOOKED_AT)]
    tried = (_pair(engine, task, found) for first in range(4) for task in spread[first::4])
    pairs = list(islice(filter(None, tried), CHECKED))
    if not pairs:
        return found
    try:
        with engine.running() as run:
            for whole, reduced, size in pairs:
                share = float(np.mean(run(whole, size) == run(reduced, size)))
                found.agreements.append(share)
    except (DeviceMemoryError, MemoryError):
        found.short = True
    return found


def _pair(engine: Engine, task: Task, found: Measured) -> tuple[U8, U8, Size] | None:
    """As _both_inputs, of an image that the engine takes; the job itself says what is wrong."""
    try:
        pair = _both_inputs(task, engine.spec)
    except ImageError:
        return None
    except MemoryError:
        found.short = True
        return None
    if pair is None or engine.refusal(pair[0].shape[:2], pair[2]) is not None:
        return None
    return pair


def _both_inputs(task: Task, spec: ModelSpec) -> tuple[U8, U8, Size] | None:
    """(input, input of the reduced image, (H, W)); None for an image that is not reduced."""
    image, size = read_reduced(task.source, spec.channels, spec.input_size)
    if image.shape[:2] == size:
        return None
    reduced = resize_image(image, checked_input_size(size, spec, task.source), spec.resize)
    whole, _ = network_input(task.source, spec)
    return whole, reduced, size
