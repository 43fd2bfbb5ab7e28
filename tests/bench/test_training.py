"""The three sources of batches that the training bench compares."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unetrt.bench import training
from unetrt.bench.training import IN_MEMORY, LOOP, REFERENCE, ReferenceSamples
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.samples import load_training_data
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
