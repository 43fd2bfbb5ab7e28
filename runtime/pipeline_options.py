"""How a pipeline is asked to run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..contract.cores import usable_cores
from ..contract.memory import memory_bytes
from .budget import SHARE
from .trace import NO_TRACE, NoTrace


def writers_for(cores: int) -> int:
    """Threads that encode and write: less work than to decode."""
    return max(2, cores // 4)


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """None takes the engine's own batch, its own slots, and a thread a core.

    waiting: loaded images held in batches that are not full, before the fullest runs as it is;
    at least one batch. memory: bytes of loaded images, and of the pages on which they are loaded,
    and of masks to be written, and of what slots give away with masks in it, each; at least one
    image and one mask. single: there is one task, for which one slot will do unless it is cut.
    tile: the longest side of a network input that is run in one piece; what does not fit into the
    memory is cut in any case. trace: where the stages note when they ran.
    """

    batch: int | None = None
    slots: int | None = None
    load_threads: int | None = None
    write_threads: int = field(default_factory=lambda: writers_for(usable_cores()))
    waiting: int = 64
    memory: int = field(default_factory=lambda: memory_bytes() // SHARE)
    single: bool = False
    tile: int | None = None
    trace: NoTrace = NO_TRACE
