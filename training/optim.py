"""The optimiser and the schedule of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from .options import RecipeOptions

PATIENCE = 5
"""Epochs without a better score that the plateau schedule bears: at the next it lowers the rate."""


def optimizer_from_recipe(parameters: Iterable[nn.Parameter], recipe: RecipeOptions) -> Optimizer:
    if recipe.optimizer == "rmsprop":
        return RMSprop(parameters, recipe.learning_rate, weight_decay=1e-8, momentum=0.999)
    return AdamW(parameters, recipe.learning_rate, weight_decay=1e-2, fused=True)


def resume_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load its state, but for how it computes: a run of before may have been saved without fused.

    float16's scaler asks the optimiser itself whether it is, not its groups.
    """
    for group in state["param_groups"]:
        if "fused" in group:
            group["fused"] = optimizer.defaults["fused"]
    optimizer.load_state_dict(state)


class RateSchedule:
    """One of three: "onecycle" and "cosine" move each step, "plateau" each epoch by its score."""

    def __init__(self, optimizer: Optimizer, recipe: RecipeOptions, steps: int) -> None:
        self._optimizer = optimizer
        self._by_step: LRScheduler | None = None
        self._plateau: ReduceLROnPlateau | None = None
        if recipe.schedule == "onecycle":
            # Its own rule for momentum is left out: it would replace AdamW's first beta.
            self._by_step = OneCycleLR(
                optimizer, recipe.learning_rate, total_steps=steps + 1, cycle_momentum=False
            )
        elif recipe.schedule == "cosine":
            self._by_step = CosineAnnealingLR(optimizer, steps)
        else:
            self._plateau = ReduceLROnPlateau(optimizer, "max", patience=PATIENCE)

    @property
    def rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def end_step(self) -> None:
        if self._by_step is not None:
            self._by_step.step()

    def end_epoch(self, score: float) -> None:
        if self._plateau is not None:
            self._plateau.step(score)

    def state_dict(self) -> dict[str, Any]:
        return self._used().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._used().load_state_dict(state)

    def _used(self) -> LRScheduler | ReduceLROnPlateau:
        used = self._by_step or self._plateau
        assert used is not None
        return used
