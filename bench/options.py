"""What a bench is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..contract.spec import NO_OVERRIDES, SpecOverrides
from ..contract.types import Size


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """limit: images taken, spread over the folder. seconds, repeats: of engine-only measurements.

    masks: the truth, for mIoU. peers: also run the makers' benchmarks. sweep: batches and slots
    of the fastest engine, and sizes (H, W) of images; none takes half and twice those of most.
    row_timeout: seconds after which a row is given up. samples: images whose masks are kept for
    the report. peaks: probe what the device can do at most. layers: run the engines' profilers.
    bit_depth: of the data in 16-bit images. sweep_batches: of every point of the sweep, if its
    patience allows. skip: rows of a checkpoint alone that are left out. calibration: images that
    the ranges of its int8 engines are measured on.
    """

    images: Path
    masks: Path | None = None
    limit: int = 64
    seconds: float = 3.0
    repeats: int = 3
    batch: int | None = None
    device: str = "auto"
    overrides: SpecOverrides = NO_OVERRIDES
    peers: bool = False
    sweep: bool = False
    sizes: tuple[Size, ...] = ()
    row_timeout: float = 1800.0
    samples: int = 0
    peaks: bool = True
    layers: bool = False
    bit_depth: int | None = None
    sweep_batches: int = 0
    skip: tuple[str, ...] = ()
    calibration: Path | None = None
