"""What a run says of each epoch: on the terminal, in metrics.csv and curve.png, to wandb."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import nn

from ..contract.errors import first_line
from ..contract.log import log
from ..contract.metrics import Scores
from .masknet import MaskNet
from .rundir import RunFolder, score_columns
from .samples import TrainingData
from .tracking import Tracker

DRAW_SECONDS = 20.0
"""Between two drawings of the curve; a run's end draws it in any case."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """loss: mean of the steps; seconds: of all; images_per_second: of the steps alone."""

    epoch: int
    step: int
    loss: float
    rate: float
    scores: Scores
    seconds: float
    images_per_second: float


class Reporter:
    """Speaks for the first process only."""

    def __init__(
        self,
        folder: RunFolder,
        data: TrainingData,
        tracker: Tracker | None,
        run_id: str | None = None,
    ) -> None:
        """run_id: of this run in wandb, for when it goes on without a tracker."""
        self._folder, self._data, self._tracker = folder, data, tracker
        self._run_id = run_id
        self._drawn = time.monotonic()

    @property
    def run_id(self) -> str | None:
        return self._tracker.run_id if self._tracker else self._run_id

    def describe(self, masknet: MaskNet, device: str) -> None:
        spec = self._data.spec
        parameters = sum(p.numel() for p in masknet.parameters())
        log.info(
            f"{len(self._data.train)} images to train on, {len(self._data.validation)} to score; "
            f"classes {', '.join(spec.class_names)} "
            f"(mask values {', '.join(map(str, spec.mask_values))}); U-Net of width {spec.width}, "
            f"{parameters:,} parameters, on {device}; run folder {self._folder.path}"
        )

    def tell(self, result: EpochResult, epochs: int, masknet: MaskNet, trained: nn.Module) -> None:
        """Add the epoch to all that is kept of the run.

        masknet: what was scored; trained: the network that the steps move.
        """
        scores = result.scores
        row: dict[str, int | float | None] = {
            "epoch": result.epoch,
            "step": result.step,
            "loss": result.loss,
            "learning_rate": result.rate,
            **score_columns(scores),
            "seconds": result.seconds,
        }
        self._folder.append_metrics(row)
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw()
        if self._tracker:
            self._tracker.log_epoch(row, masknet, trained, self._data.validation)
        log.info(
            f"epoch {result.epoch}/{epochs}: loss {result.loss:.4f}, "
            f"foreground mIoU {_shown(scores.foreground_miou)}, "
            f"Dice {_shown(scores.foreground_dice)}, "
            f"pixels {_shown(scores.pixel_accuracy)}, rate {result.rate:.2g}, "
            f"{result.seconds:.1f} s, {result.images_per_second:.0f} images/s"
        )

    def tell_step(self, step: int, loss: float, steps: int) -> None:
        """steps: in an epoch."""
        if self._tracker:
            self._tracker.log_step(step, loss, steps)

    def draw(self) -> None:
        """No run ends, and no error is replaced, because its curve could not be drawn."""
        try:
            self._folder.draw()
        except Exception as error:  # noqa: BLE001  of matplotlib: its settings may ask for LaTeX
            log.warning("the curve was not drawn: %s", first_line(error))
        self._drawn = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """failed: an error has ended the run."""
        try:
            self.draw()
        finally:
            if self._tracker:
                self._tracker.close(failed)


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
