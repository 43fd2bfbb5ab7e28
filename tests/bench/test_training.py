"""The three sources of batches that the training bench compares."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unetrt.bench import training
from unetrt.bench.training_loop import (
    IN_MEMORY,
    LOOP,
    REFERENCE,
    ReferenceSamples,
    measure_training,
)
from unetrt.contract.patience import THREAD_PATIENCE
from unetrt.training import trainer
from unetrt.training.average import WeightAverage
from unetrt.training.batches import Batch, Batches, batch_options
from unetrt.training.optim import RateSchedule
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.samples import TrainingData, load_training_data
from unetrt.training.step import Stepper
from unetrt.training.synthetic import write_dataset


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_dataset(tmp_path_factory.mktemp("drawn"), 10, (48, 64), seed=3)


def test_the_reference_s_way_of_reading_gives_the_same_pairs(folders: tuple[Path, Path]) -> None:
    options = TrainOptions(
        images=folders[0], masks=folders[1], channels=1, classes=4, width=4, scale=1.0,
        validation=25, recipe=replace(RECIPES["reference"], batch_size=2),
    )  # fmt: skip
    samples = load_training_data(options, None).train
    for sample, (image, truth) in zip(samples, ReferenceSamples(samples), strict=True):
        np.testing.assert_array_equal(image.numpy(), sample.load()[0])
        np.testing.assert_array_equal(truth.numpy(), sample.load()[1])


def test_a_wrong_request_is_told_without_a_traceback(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", str(folders[0]), "--masks", str(folders[1]), "--channels", "1"]
    assert training.main([*arguments, "--classes", "2", "--width", "4"]) == 2
    assert "Hint: --classes 4" in capsys.readouterr().err


def test_no_repeats_are_nothing_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--images", "i", "--masks", "m", "--repeats", "0"])
    assert "--repeats: 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        training.main(["--images", "i", "--masks", "m", "--seconds", "0"])
    assert "--seconds: 0" in capsys.readouterr().err


def test_every_source_is_timed(folders: tuple[Path, Path]) -> None:
    arguments = f"--images {folders[0]} --masks {folders[1]} --classes 4 --channels 1 --width 4"
    # A process of its own, since the reference's loader forks.
    done = subprocess.run(
        [sys.executable, "-m", "unetrt.bench.training", *arguments.split(), "--seconds", "0.05",
         "--repeats", "1"], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in (IN_MEMORY, LOOP, REFERENCE):
        assert name in done.stdout


WAITS = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("spins", os.environ.get("GOMP_SPINCOUNT"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Finder())
from unetrt.bench.training import main
assert main(sys.argv[1:]) == 2
assert "torch" in sys.modules
print("left", os.environ.get("GOMP_SPINCOUNT"))
"""


def test_threads_wait_as_those_of_train_do(tmp_path: Path) -> None:
    """What they do is read from the environment at PyTorch's first import."""
    kept = {k: v for k, v in os.environ.items() if k not in THREAD_PATIENCE}
    words = ["--images", str(tmp_path / "none"), "--masks", str(tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, "-c", WAITS, *words], env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["spins", THREAD_PATIENCE["GOMP_SPINCOUNT"], "left", "None"]


def test_the_step_that_is_timed_is_that_of_train(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a recipe brings: the average of the weights follows each one."""
    counts = {"step": 0, "average": 0, "rate": 0, "check": 0}

    def counted(name: str, whole: Any) -> Any:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return whole(*arguments)

        return call

    monkeypatch.setattr(Stepper, "step", counted("step", Stepper.step))
    monkeypatch.setattr(WeightAverage, "follow", counted("average", WeightAverage.follow))
    monkeypatch.setattr(RateSchedule, "end_step", counted("rate", RateSchedule.end_step))
    check = counted("check", trainer.first_not_finite)
    monkeypatch.setattr(trainer, "first_not_finite", check)
    monkeypatch.setattr("unetrt.bench.training_loop._sources", in_memory)
    options = TrainOptions(
        images=folders[0], masks=folders[1], channels=1, classes=4, width=4, scale=1.0,
        validation=25, recipe=replace(RECIPES["modern"], batch_size=2),
    )  # fmt: skip
    [row] = measure_training(options, 0.05, 2)
    assert row.ratio == 1
    assert counts["step"] >= 4
    assert set(counts.values()) == {counts["step"]}


def in_memory(
    options: TrainOptions, data: TrainingData
) -> dict[str, Callable[[], Iterator[Batch]]]:
    """Not the reference's loader, which forks."""
    batches = Batches(data.train, batch_options(options, torch.device("cpu")))
    return {IN_MEMORY: lambda: itertools.repeat(next(batches.epoch(0)))}
