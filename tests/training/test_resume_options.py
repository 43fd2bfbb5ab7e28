"""What a resumed run takes from this call, and what from its own; runs that an error cut short."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetrt.cli.train import add_arguments, given_options, options_from_arguments
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.training.batches import Batch, Batches, batch_options
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetrt.training.options import TrainOptions
from unetrt.training.resume import options_to_json, read_resumed, with_whole_paths
from unetrt.training.samples import load_training_data
from unetrt.training.train import train
from unetrt.training.unet import UNet

Begin = Callable[[str], Path]


def parsed(words: str) -> tuple[TrainOptions, set[str]]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words.split())
    return options_from_arguments(args), given_options(args)


@pytest.fixture
def begin(steel: tuple[Path, Path], tmp_path: Path) -> Begin:
    """Leave what a run with these flags leaves, as far as options are concerned."""

    def write(words: str) -> Path:
        options, given = parsed(f"--images {steel[0]} --masks {steel[1]} --width 2 {words}")
        state = {"options": options_to_json(with_whole_paths(options)), "given": sorted(given)}
        net, folder = UNet(3, 2, 2).state_dict(), tmp_path / "run"
        folder.mkdir()
        checkpoint = Checkpoint(ModelSpec(width=2), net, resume={**state, "epoch": 0})
        write_checkpoint(folder / "last.pth", checkpoint)
        return folder

    return write


def resumed(run: Path, words: str = "") -> TrainOptions:
    options, given = parsed(f"--resume {run} {words}")
    return read_resumed(options, run, given).options


def test_what_this_call_does_not_say_is_the_run_s(begin: Begin) -> None:
    run = begin("--wandb --device cpu --workers 2")
    found = resumed(run)
    assert (found.wandb, found.device, found.workers) == (True, "cpu", 2)
    found = resumed(run, "--no-wandb --device auto --workers 0")
    assert (found.wandb, found.device, found.workers) == (False, "auto", 0)


@pytest.mark.parametrize(
    ("first", "repeated"),
    [
        ("--recipe modern -e 50 --no-augment", "--recipe modern"),
        ("--recipe modern -e 50", "--recipe modern -e 50"),
        ("--recipe reference -e 30 -b 8 -l 2e-3 --augment", "--recipe reference -b 8"),
        ("-e 30", "--recipe reference"),
    ],
)
def test_a_recipe_may_be_repeated_without_the_flags_beside_it(
    begin: Begin, first: str, repeated: str
) -> None:
    run = begin(first)
    assert resumed(run, repeated).recipe == parsed(first)[0].recipe


def test_another_recipe_is_refused(begin: Begin) -> None:
    """What the run set by itself is not held against it."""
    run = begin("--recipe modern -e 50")
    with pytest.raises(UserError, match="keeps the options") as caught:
        resumed(run, "--recipe reference")
    assert "--optimizer rmsprop" in str(caught.value.seen)
    assert "--epochs" not in str(caught.value.seen)
    with pytest.raises(UserError, match="keeps the options"):
        resumed(run, "--recipe modern -e 30")


def test_one_place_may_have_other_names(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = begin("--load weights.pth")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for words in (f"--out {run}", "--out ../run", "--load ../weights.pth"):
        assert resumed(Path("../run"), words).load == tmp_path / "weights.pth"
    with pytest.raises(UserError, match="keeps the options"):
        resumed(run, "--load weights.pth")


def test_the_run_in_wandb_is_remembered_without_it(quick_options: TrainOptions) -> None:
    folder = train(quick_options).parent
    last = read_checkpoint(folder / "last.pth")
    last.resume |= {"epoch": 1, "batch": 3, "wandb": "abc"}
    write_checkpoint(folder / "last.pth", last)
    train(TrainOptions(resume=folder))
    assert read_checkpoint(folder / "last.pth").resume["wandb"] == "abc"


@pytest.mark.parametrize("error", [ImageError("a.png is gone"), OSError("stale file handle")])
def test_a_file_that_goes_costs_no_step(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Before the last of the six steps, of three an epoch."""
    whole = Batches._batch

    def goes(batches: Batches, task: tuple[int, int, list[int]]) -> Batch:
        if task[:2] == (1, 2):
            raise error
        return whole(batches, task)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_batch", goes)
        with pytest.raises(UserError, match=rf"{error}, after step 5 \(epoch 2\)") as caught:
            train(quick_options)
    folder = quick_options.out
    assert folder is not None
    assert caught.value.hint == f"unetrt train --resume {folder}   goes on from there"
    assert f"the weights after step 5 are in {folder / 'last.pth'}" in str(caught.value)
    assert read_checkpoint(folder / "last.pth").resume["step"] == 5
    train(TrainOptions(resume=folder))
    assert read_checkpoint(folder / "last.pth").resume["epoch"] == 2


def test_a_run_of_before_a_field_of_the_recipe_goes_on_as_it_began(begin: Begin) -> None:
    """Such a run has neither the names of its flags nor the size of its loss."""
    run = begin("--recipe modern -e 50 --loss-size network")
    checkpoint = read_checkpoint(run / "last.pth")
    options = json.loads(checkpoint.resume["options"])
    del options["recipe"]["loss_size"]
    checkpoint.resume["options"] = json.dumps(options)
    del checkpoint.resume["given"]
    write_checkpoint(run / "last.pth", checkpoint)
    assert resumed(run, "--recipe modern -e 50").recipe.loss_size == "network"
    with pytest.raises(UserError, match="keeps the options"):
        resumed(run, "--recipe modern -e 50 --loss-size mask")


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("", False),
        ("--recipe modern", False),
        ("--recipe modern --loss-size mask", True),
        ("--loss-size mask", True),
    ],
)
def test_the_size_of_the_loss_reaches_the_batches(
    words: str, whole: bool, steel: tuple[Path, Path]
) -> None:
    options, _ = parsed(f"--images {steel[0]} --masks {steel[1]} --classes 4 {words}")
    data = load_training_data(options, None)
    batches = Batches(data.train, batch_options(options, torch.device("cpu")))
    for batch in batches.epoch(0):
        assert batch.images.shape[1:3] == (24, 32)
        assert (batch.truth.shape[1:] == (48, 64)) == whole
        assert (batch.truth.shape[1:] == (24, 32)) != whole


def test_one_of_the_folders_to_score_on_may_have_moved(begin: Begin, tmp_path: Path) -> None:
    """As the hint of a run whose folder is gone says."""
    images, masks, moved = (tmp_path / name for name in ("val-imgs", "val-masks", "moved"))
    images.mkdir()
    masks.mkdir()
    run = begin(f"--val-images {images} --val-masks {masks}")
    images.rename(moved)
    with pytest.raises(UserError, match="not where it was") as caught:
        resumed(run, "")
    assert "--val-images DIR " in str(caught.value.hint)
    assert resumed(run, f"--val-images {moved}").val_masks == masks


def test_one_folder_to_score_on_is_too_few_for_a_run_without(begin: Begin, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--val-images and --val-masks"):
        resumed(begin(""), f"--val-images {tmp_path}")


def test_what_goes_with_the_classes_may_be_repeated_alone(begin: Begin) -> None:
    run = begin("--classes 4 --class-names a,b,c,d --mask-values 0,1,2,3 --class-weights 1,2,3,4")
    for flag in ("--class-names a,b,c,d", "--mask-values 0,1,2,3", "--class-weights 1,2,3,4"):
        assert resumed(run, flag).classes == 4
    with pytest.raises(UserError, match="keeps the options"):
        resumed(run, "--class-names a,b")
