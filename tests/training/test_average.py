"""The weights' running average: what it holds, and that it is what a run scores and keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.training.average import WeightAverage
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, unet_from_checkpoint
from unetrt.training.masknet import MaskNet
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.samples import load_training_data
from unetrt.training.train import train
from unetrt.training.unet import UNet
from unetrt.training.validate import validate

WEIGHT, COUNT = "inc.double_conv.0.weight", "inc.double_conv.1.num_batches_tracked"
VARIANCE = "inc.double_conv.1.running_var"


def test_it_is_the_moving_average_with_its_warm_up() -> None:
    """Steps of known weights against the recursion, in float64."""
    torch.manual_seed(0)
    net = UNet(1, 2, 4)
    average = WeightAverage(net, 0.2)
    expected = {name: net.state_dict()[name].double() for name in (WEIGHT, VARIANCE)}
    for step in range(1, 13):
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.add_(torch.rand_like(tensor) if tensor.is_floating_point() else 1)
        average.follow()
        decay = min(0.2, step / (30 + step))
        assert (decay < 0.2) == (step < 8)
        for name in expected:
            now = net.state_dict()[name].double()
            expected[name] = decay * expected[name] + (1 - decay) * now
    state = average.net.state_dict()
    for name, values in expected.items():
        torch.testing.assert_close(state[name].double(), values, rtol=1e-6, atol=1e-6)
    assert state[COUNT] == net.state_dict()[COUNT] == 12
    assert not any(parameter.requires_grad for parameter in average.net.parameters())


@pytest.fixture
def averaged(quick_options: TrainOptions) -> TrainOptions:
    return replace(quick_options, recipe=replace(quick_options.recipe, epochs=3, ema=0.99))


def masknet_of(checkpoint: Checkpoint) -> MaskNet:
    return MaskNet(unet_from_checkpoint(checkpoint), checkpoint.spec)


def test_what_is_scored_is_what_is_kept(averaged: TrainOptions) -> None:
    best = train(averaged)
    last = read_checkpoint(best.with_name("last.pth"))
    trained = last.resume["trained"]
    assert last.resume["averaged"] == last.resume["step"] == 9
    assert not torch.equal(trained[WEIGHT], last.state[WEIGHT])
    data = load_training_data(averaged, None)
    lines = best.with_name("metrics.csv").read_text().splitlines()
    told = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    found = validate(masknet_of(last), data.validation).scores(last.spec.class_names)
    assert found.pixel_accuracy == pytest.approx(float(told[-1]["pixel_accuracy"]), abs=1e-5)
    highest = max(float(row["foreground_miou"]) for row in told)
    kept = read_checkpoint(best)
    assert validate(masknet_of(kept), data.validation).scores(
        kept.spec.class_names
    ).foreground_miou == pytest.approx(highest, abs=1e-5)
    assert "trained" not in kept.resume


def test_the_steps_are_those_of_a_run_without_it(averaged: TrainOptions, tmp_path: Path) -> None:
    """It follows and is never followed."""
    train(averaged)
    plain = replace(averaged, recipe=replace(averaged.recipe, ema=0.0), out=tmp_path / "plain")
    train(plain)
    last = read_checkpoint(tmp_path / "plain" / "last.pth")
    assert averaged.out is not None
    trained = read_checkpoint(averaged.out / "last.pth").resume["trained"]
    assert trained.keys() == last.state.keys()
    assert all(torch.equal(trained[name], last.state[name]) for name in trained)
    assert "trained" not in last.resume


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match="--ema"):
        RecipeOptions(ema=decay)
