"""A run in Weights & Biases, where it is asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contract.errors import UserError, first_line
from ..contract.images import shown
from ..contract.log import log
from ..contract.modules import INSTALL, is_installed
from ..contract.resize import resize_mask
from ..contract.types import NO_CLASS
from .masknet import MaskNet
from .options import TrainOptions
from .samples import Sample
from .validate import Fitting

PROJECT = "unetrt"
STEP_LOSS = "step_loss"
KEY_HINT = "wandb login   or, to write below the run's folder only, WANDB_MODE=offline"
POINTS = 20
"""Of the steps' losses that are logged in an epoch, about."""
SHOWN = 4
"""Validation images whose masks are logged."""


def require_wandb() -> None:
    """Raise UserError, before any work is done, where the package or its key is missing.

    On a terminal wandb asks for the key.
    """
    if not is_installed("wandb"):
        raise UserError("--wandb needs the package wandb", hint=INSTALL["wandb"])
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return
    wandb: Any = importlib.import_module("wandb")
    with _told(wandb):
        wandb.login(verify=False)


@contextmanager
def _told(wandb: Any) -> Iterator[None]:
    """Turn what wandb raises for its settings, its key and its server into a UserError."""
    try:
        yield
    except (wandb.errors.Error, ValueError) as error:
        seen = first_line(error)
        raise UserError("wandb does not start", seen=seen, hint=KEY_HINT) from error


class Tracker:
    """One run of wandb; its mode, project and key are wandb's own settings and variables.

    Once wandb fails it is told nothing more: the training goes on without it.
    """

    _lost = False

    def __init__(self, options: TrainOptions, folder: Path, run_id: str | None) -> None:
        """run_id: of the run that goes on; None starts one."""
        self._wandb: Any = importlib.import_module("wandb")
        config = asdict(options)
        name = folder.name
        with _told(self._wandb):
            self._run: Any = self._wandb.init(
                project=PROJECT, name=name, dir=folder, config=config, id=run_id, resume="allow"
            )
            # Its own step is the run's: the losses between two epochs have to have one.
            self._run.define_metric("epoch")
            self._run.define_metric("*", step_metric="epoch")
            self._run.define_metric(STEP_LOSS, step_metric="step")

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    def log_step(self, step: int, loss: float, steps: int) -> None:
        """Log the loss of one step in so many, about POINTS an epoch. steps: in an epoch."""
        if self._lost or step % max(1, steps // POINTS):
            return
        with self._lasting():
            # Left open: the epoch that may end here has the same step.
            self._run.log({STEP_LOSS: loss, "step": step}, step=step, commit=False)

    def log_epoch(
        self,
        row: dict[str, int | float | None],
        masknet: MaskNet,
        trained: nn.Module,
        samples: Sequence[Sample],
    ) -> None:
        """Log losses, rate, scores and masks of what was scored.

        And, of the network that the steps move, histograms of weights and the last gradients.
        """
        if self._lost:
            return
        numbers = {name: value for name, value in row.items() if value is not None}
        with self._lasting():  # a mask may not fit into memory, or its file be gone
            content = numbers | self._histograms(trained) | self._masks(masknet, samples)
            # Offline wandb does not know how far a resumed run had come: it would count from 0.
            self._run.log(content, step=row["step"], commit=True)

    def close(self, failed: bool = False) -> None:
        if not self._lost:
            with self._lasting():
                self._run.finish(exit_code=int(failed))

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  wandb's own have no class for all
            self._lost = True
            log.warning(
                f"wandb takes nothing more of this run, which goes on without: {first_line(error)}"
            )

    def _histograms(self, net: nn.Module) -> dict[str, Any]:
        found = {}
        for name, parameter in net.named_parameters():
            found[f"weights/{name}"] = self._histogram(parameter.detach())
            if parameter.grad is not None and torch.isfinite(parameter.grad).all():
                found[f"gradients/{name}"] = self._histogram(parameter.grad)
        return found

    def _histogram(self, values: Tensor) -> Any:
        return self._wandb.Histogram(values.float().cpu().numpy().ravel())

    def _masks(self, masknet: MaskNet, samples: Sequence[Sample]) -> dict[str, Any]:
        training = masknet.training
        masknet.eval()
        try:
            pictures = self._pictures(masknet, samples[:SHOWN])
        finally:
            masknet.train(training)
        return {"masks": pictures}

    def _pictures(self, masknet: MaskNet, samples: Sequence[Sample]) -> list[Any]:
        fitting = Fitting(masknet, speaks=False)
        names = {**dict(enumerate(masknet.spec.class_names)), NO_CLASS: "none"}
        pictures = []
        for sample in samples:
            image, truth = sample.load()
            truth = resize_mask(truth, sample.input_size)
            [predicted] = fitting.masks([image], sample.input_size)
            layers = {"predicted": predicted, "truth": truth}
            masks = {k: {"mask_data": v, "class_labels": names} for k, v in layers.items()}
            pixels = np.squeeze(image, 2) if image.shape[2] == 1 else shown(image)
            pictures.append(self._wandb.Image(pixels, masks=masks, caption=sample.pair.name))
        return pictures
