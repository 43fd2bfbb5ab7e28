from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from unetrt.training.optim import RateSchedule, optimizer_from_recipe, resume_optimizer
from unetrt.training.options import RECIPES, RecipeOptions, Schedule
from unetrt.training.unet import UNet


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


def test_all_weights_at_once_move_as_one_after_another() -> None:
    """In channels_last, which has to be that of weights and moments alike."""
    torch.manual_seed(0)
    nets = [UNet(1, 3, 4).to(memory_format=torch.channels_last) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    recipe = RECIPES["modern"]
    fused = optimizer_from_recipe(nets[0].parameters(), recipe)
    plain = AdamW(nets[1].parameters(), recipe.learning_rate, weight_decay=1e-2, foreach=False)
    image = torch.rand(2, 1, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(3):
        for net, optimizer in zip(nets, (fused, plain), strict=True):
            optimizer.zero_grad()
            net(image).square().mean().backward()
            optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_saved_before_goes_on_with_all_weights_at_once() -> None:
    """float16's scaler would else hand the optimiser what it does not take."""
    weight = nn.Parameter(torch.ones(3))
    before = AdamW([weight], 1e-3, foreach=False)
    weight.grad = torch.ones(3)
    before.step()
    after = optimizer_from_recipe([weight], RECIPES["modern"])
    resume_optimizer(after, before.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(after)
    scaler.step(after)
    assert after.param_groups[0]["fused"] is True
    assert after.state[weight]["step"] == 2
