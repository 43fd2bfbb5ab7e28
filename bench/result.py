"""What a bench found: rows, and all that is needed to read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..contract.cores import usable_cores
from .job import RowResult
from .judge import Judgement
from .machine import cuda_device
from .measure import WARM_UP_RULE
from .peaks import Peaks, PeakShare
from .peers import Peer
from .samples import Samples
from .slo import SloAnswer
from .sweep import Sweep

REGIONS = {
    "engine only": "inputs decoded and in the slots' memory, masks left there; no decode, resize, "
    "copy to a device, encode or write. On a CPU the slots' memory is the host's; on CUDA by "
    "events on the drained streams, without the slots' CUDA graphs (a row of PyTorch + CUDA graph "
    "replays its own); the reference loop's is its network alone",
    "engine with copies": "the same with copies to and from the device, on CUDA by events on the "
    "drained streams; on a CPU there are none: its number is that of engine only, shown as –",
    "files to files": "image files to mask files, passes that last about the seconds of a repeat: "
    "over all images, several times where one takes less; of the reference loop, where all are of "
    "one size, over as many of them as that needs. Each into a folder without masks, with the "
    "journal that predict --output-dir keeps; no opening of the model, no compiling of its shapes",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured engine, or why there is no number.

    agreement: share of pixels equal to the baseline's, over all masks; trusted: masks and scores
    are as near the baseline's as the gate asks.
    """

    name: str
    result: RowResult | None = None
    agreement: float | None = None
    trusted: bool = False
    reason: str = ""
    judgement: Judgement | None = None
    build_seconds: float | None = None
    required: bool = True
    """False for one that cannot run on this machine, or is PyTorch's own: no failure of ours."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Rows, the first the baseline, with all that is needed to read them.

    notes: what went wrong beside the rows. interrupted: what was not measured has no number.
    """

    rows: tuple[Row, ...]
    images: int
    machine: dict[str, str]
    versions: dict[str, str]
    peaks: Peaks = field(default_factory=Peaks)
    peers: tuple[Peer, ...] = ()
    sweep: Sweep | None = None
    seconds: float = 0.0
    warm_up: str = WARM_UP_RULE
    regions: dict[str, str] = field(default_factory=lambda: dict(REGIONS))
    samples: Samples | None = None
    slo: SloAnswer | None = None
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def load_before(self) -> float | None:
        """Of others, before the first row; None where the system does not tell."""
        text = self.machine.get("load before", "")
        return float(text) if text.replace(".", "", 1).isdigit() else None

    @property
    def cores(self) -> int:
        """That the bench could use."""
        text = self.machine.get("cores used", "").partition(" ")[0]
        return int(text) if text.isdigit() else usable_cores()

    @property
    def on_gpu(self) -> bool:
        """Whether a row ran on CUDA: then the numbers are the GPU's, not the processor's."""
        return any(row.result and cuda_device(row.result.device) for row in self.rows)

    def peak_share(self, result: RowResult) -> PeakShare:
        """What a row's arithmetic reaches of the peak of the device that it ran on."""
        peaks = self.peaks.of_device(result.on_gpu)
        return peaks.share(result.achieved, result.peak_precision)

    def matrix_share(self, result: RowResult) -> float | None:
        """As peak_share, of the best product of matrices alone."""
        peaks = self.peaks.of_device(result.on_gpu)
        return peaks.of_matrices(result.achieved, result.peak_precision)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the pictures."""
        return {key: value for key, value in asdict(self).items() if key != "samples"}


def judged_row(row: Row, reason: str, judgement: Judgement | None = None) -> Row:
    """A measured row with its verdict; without a judgement its masks could not be compared."""
    return Row(
        name=row.name,
        result=row.result,
        build_seconds=row.build_seconds,
        judgement=judgement,
        agreement=judgement.agreement if judgement else None,
        trusted=judgement is not None and not reason,
        reason=reason,
        required=row.required,
    )
