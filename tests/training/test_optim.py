from __future__ import annotations

import pytest
import torch

from unetrt.training.optim import RateSchedule, optimizer_from_recipe
from unetrt.training.options import RecipeOptions, Schedule


def rates(schedule: Schedule, steps: int = 10) -> list[float]:
    recipe = RecipeOptions(learning_rate=0.1, schedule=schedule, optimizer="adamw")
    optimizer = optimizer_from_recipe([torch.nn.Parameter(torch.zeros(1))], recipe)
    moves, seen = RateSchedule(optimizer, recipe, steps), []
    for _ in range(steps):
        seen.append(moves.rate)
        optimizer.step()
        moves.end_step()
    return [*seen, moves.rate]


def test_one_cycle_rises_and_falls() -> None:
    seen = rates("onecycle", 20)
    top = seen.index(max(seen))
    assert 3 <= top <= 8
    assert max(seen) == pytest.approx(0.1, rel=0.01)
    assert seen[:top] == sorted(seen[:top])
    assert seen[-1] < 1e-4 < seen[0] < 0.01


def test_cosine_only_falls() -> None:
    seen = rates("cosine")
    assert seen[0] == 0.1
    assert seen == sorted(seen, reverse=True)
    assert seen[5] == pytest.approx(0.05)
    assert seen[-1] == pytest.approx(0, abs=1e-9)


def test_plateau_waits_six_epochs_for_a_better_score() -> None:
    recipe = RecipeOptions(learning_rate=0.1)
    optimizer = optimizer_from_recipe([torch.nn.Parameter(torch.zeros(1))], recipe)
    schedule, seen = RateSchedule(optimizer, recipe, 99), []
    for score in (0.5, *[0.4] * 7):
        schedule.end_step()
        schedule.end_epoch(score)
        seen.append(round(schedule.rate, 9))
    assert seen == [*[0.1] * 6, 0.01, 0.01]
