"""Two processes over gloo train as one does on the same batches."""

from __future__ import annotations

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetrt.training.checkpoint import read_checkpoint
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.ranks import Ranks, sync_batchnorms
from unetrt.training.report import Reporter
from unetrt.training.rundir import RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.train import train
from unetrt.training.trainer import Trainer
from unetrt.training.unet import UNet

WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TIMEOUT = 120


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_two_processes_step_as_one_does(steel: tuple[Path, Path], tmp_path: Path) -> None:
    """Batches of 4: in one process, and 2 images in each of two."""
    folders = str(steel[0]), str(steel[1])
    runpy.run_path(str(WORKER))["main"](*folders, str(tmp_path / "one.pt"))
    command = [sys.executable, *TORCHRUN, str(WORKER), *folders, str(tmp_path / "two.pt")]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert two["any"]["yes"]
    for dice in ("all", "foreground"):
        alone, both = one[dice], two[dice]
        assert both["losses"] == pytest.approx(alone["losses"], abs=1e-9)
        assert torch.equal(both["counts"], alone["counts"])
        assert both["state"].keys() == alone["state"].keys()
        for name, tensor in alone["state"].items():
            assert torch.allclose(both["state"][name], tensor, atol=1e-8), name


def test_norms_that_are_joined_in_one_process_are_pytorch_s() -> None:
    torch.manual_seed(0)
    plain, joined = UNet(1, 2, 2).train(), UNet(1, 2, 2).train()
    joined.load_state_dict(plain.state_dict())
    assert sync_batchnorms(joined, Ranks(), torch.device("cpu")) is joined
    assert {type(m) for m in plain.modules()} == {type(m) for m in joined.modules()}


def test_a_batch_below_the_number_of_processes_is_warned_of(
    quick_options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """What the first of eight processes says before its first step."""
    data = load_training_data(quick_options, None)
    net, folder = UNet(1, 4, 4), RunFolder(quick_options.out)
    trainer = Trainer(quick_options, data, net, folder, Reporter(folder, data, None), Ranks())
    for world, told in ((4, 0), (8, 1)):
        trainer._ranks = Ranks(0, world)
        trainer._warn_of_recipe()
        assert sum(f"number of processes, {world}" in r.message for r in caplog.records) == told


def command(options: TrainOptions, out: Path) -> list[str]:
    """Two processes of `unetrt train`, with the flags of `options`."""
    recipe = options.recipe
    flags = f"--images {options.images} --masks {options.masks} --channels 1 --classes 4 "
    flags += f"--width 4 --scale 1 --validation 25 --recipe modern --epochs {recipe.epochs} "
    flags += f"--batch-size {recipe.batch_size} --device cpu --out {out}"
    return [sys.executable, *TORCHRUN, "-m", "unetrt.cli", "train", *flags.split()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_of_two_processes_has_one_voice_and_the_scores_of_one(
    quick_options: TrainOptions, tmp_path: Path
) -> None:
    options = replace(quick_options, recipe=replace(RECIPES["modern"], epochs=2, batch_size=4))
    alone, both = train(options).parent, tmp_path / "both"
    done = subprocess.run(
        command(options, both), env=environment(), capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("images to train on") == 1
    assert {p.name for p in both.iterdir()} == {p.name for p in alone.iterdir()}
    for one, two in zip(rows(alone), rows(both), strict=True):
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-3)
        for name in ("foreground_miou", "pixel_accuracy"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=5e-3)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(quick_options: TrainOptions, tmp_path: Path) -> None:
    options = replace(quick_options, recipe=replace(RECIPES["modern"], epochs=400, batch_size=4))
    both = tmp_path / "both"
    running = subprocess.Popen(command(options, both), env=environment(), stderr=subprocess.PIPE)
    limit = time.monotonic() + TIMEOUT
    while not (both / "last.pth").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=TIMEOUT)
    assert b"goes on from here" in stderr
    last = read_checkpoint(both / "last.pth").resume
    assert last["step"] == 3 * last["epoch"] + last["batch"]
