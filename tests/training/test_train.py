from __future__ import annotations

import argparse
import csv
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from unetrt.cli.main import main
from unetrt.cli.train import add_arguments, options_from_arguments, run
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.training.batches import Batch
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, unet_from_checkpoint
from unetrt.training.losses import LossOptions, segmentation_loss
from unetrt.training.masknet import MaskNet
from unetrt.training.options import RECIPES, RecipeOptions, TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.samples import load_training_data
from unetrt.training.step import Stepper
from unetrt.training.synthetic import write_dataset
from unetrt.training.train import _network, train
from unetrt.training.validate import masks_from_net, validate


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def folder_of(options: TrainOptions) -> Path:
    assert options.out is not None
    return options.out


def with_recipe(options: TrainOptions, **changes: Any) -> TrainOptions:
    return replace(options, recipe=replace(options.recipe, **changes))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_training_learns_and_leaves_a_whole_run(quick_options: TrainOptions) -> None:
    options = with_recipe(quick_options, epochs=16, batch_size=2, learning_rate=2e-2)
    best = train(options)
    rows = metrics(best.parent)
    losses = [float(row["loss"]) for row in rows]
    scores = [float(row["foreground_miou"]) for row in rows]
    assert len(rows) == 16
    assert losses[-1] < 0.5 * losses[0]
    assert max(scores) > 0.2
    assert float(rows[-1]["learning_rate"]) < float(rows[4]["learning_rate"])
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    columns = [re.sub("^(iou|dice) .*", r"\1 CLASS", column) for column in rows[0]]
    assert [column for column in columns if f"`{column}`" not in page] == [], "it is documented"
    assert {"epoch", "step", "pixel_accuracy", "iou class 3", "seconds"} <= rows[0].keys()
    for row in rows:
        for iou, dice in ((row[f"iou class {i}"], row[f"dice class {i}"]) for i in (1, 2, 3)):
            assert bool(iou) == bool(dice)
            assert not iou or float(dice) == pytest.approx(2 * float(iou) / (1 + float(iou)), 1e-4)
    files = {"best.pth", "last.pth", "metrics.csv", "curve.png"}
    assert {p.name for p in best.parent.iterdir()} == files
    last = read_checkpoint(best.with_name("last.pth"))
    assert last.resume["epoch"] == 16
    assert last.resume["step"] == 96
    assert last.resume["best"] == pytest.approx(max(scores), abs=1e-5)


def test_the_best_checkpoint_has_the_score_of_the_log(quick_options: TrainOptions) -> None:
    best = read_checkpoint(train(quick_options))
    data = load_training_data(quick_options, None)
    assert best.spec == data.spec
    matrix = validate(MaskNet(unet_from_checkpoint(best), best.spec), data.validation)
    score = matrix.scores(best.spec.class_names).foreground_miou
    logged = [float(row["foreground_miou"]) for row in metrics(folder_of(quick_options))]
    assert score == pytest.approx(max(logged), abs=1e-5)
    assert matrix.counts.sum() == len(data.validation) * 48 * 64
    golden = [(s.load()[0], s.size) for s in data.validation]
    assert len(best.golden) == len(golden) == 4
    for (image, size), (expected, expected_size) in zip(best.golden, golden, strict=True):
        assert np.array_equal(image, expected)
        assert size == expected_size


def test_one_seed_gives_the_same_weights(quick_options: TrainOptions, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, Tensor]:
        return read_checkpoint(train(replace(quick_options, out=tmp_path / name, seed=seed))).state

    first, again, other = weights("a", 0), weights("b", 0), weights("c", 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["inc.double_conv.0.weight"], other["inc.double_conv.0.weight"])


def test_the_caller_s_random_numbers_are_left_alone(quick_options: TrainOptions) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(with_recipe(quick_options, epochs=1))
    assert torch.equal(torch.rand(4), expected)


def test_weights_are_drawn_without_a_word_where_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch warns of several whose generators would be kept."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _network(ModelSpec(width=2), None, seed=0)


@pytest.mark.parametrize("recipe", [RecipeOptions(epochs=1), RecipeOptions(epochs=1, batch_size=5)])
@pytest.mark.parametrize("changes", [{}, {"crop": 32, "amp": True}, {"bilinear": True}])
def test_the_reference_s_recipe_runs(
    quick_options: TrainOptions, recipe: RecipeOptions, changes: dict[str, Any]
) -> None:
    train(replace(quick_options, recipe=recipe, **changes))
    assert float(metrics(folder_of(quick_options))[0]["learning_rate"]) == 1e-5


def test_one_class_trains(quick_options: TrainOptions, tmp_path: Path) -> None:
    from PIL import Image

    masks = tmp_path / "binary"
    masks.mkdir()
    for path in quick_options.masks.iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(
            masks / path.name
        )
    best = read_checkpoint(train(replace(quick_options, masks=masks, classes=1)))
    assert best.spec.mask_values == (0, 255)
    assert best.state["outc.conv.weight"].shape[0] == 1


def test_starting_weights_are_used(
    quick_options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = train(quick_options)
    slow = with_recipe(
        replace(quick_options, load=start, out=tmp_path / "again"), epochs=1, learning_rate=1e-12
    )
    before, after = read_checkpoint(start).state, read_checkpoint(train(slow)).state
    key = "down2.maxpool_conv.1.double_conv.0.weight"
    assert torch.allclose(before[key], after[key], atol=1e-6)
    assert "was trained with" not in caplog.text
    train(replace(slow, scale=0.5, out=tmp_path / "half"))
    assert f"{start} was trained with --scale 1, this run is with 0.5" in caplog.text
    with pytest.raises(UserError, match="another network") as caught:
        train(replace(slow, width=8, bilinear=True, out=tmp_path / "third"))
    assert caught.value.hint == "train with --width 4 no --bilinear"
    assert not (tmp_path / "third").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_weights(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth step of three an epoch fails: the weights of the fourth stay."""
    calls: list[int] = []

    def fails_later(logits: Tensor, truth: Tensor, options: LossOptions, ranks: Ranks) -> Tensor:
        calls.append(len(calls))
        loss = segmentation_loss(logits, truth, options, ranks)
        return loss * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr("unetrt.training.step.segmentation_loss", fails_later)
    with pytest.raises(UserError, match="not finite at step 5") as caught:
        train(quick_options)
    assert str(caught.value).count("steel-") == 4
    last = folder_of(quick_options) / "last.pth"
    assert str(last) in str(caught.value)
    assert caught.value.hint == f"unetrt train --load {last} -l 0.0002 …   a lower rate"
    kept = read_checkpoint(last)
    assert (kept.resume["epoch"], kept.resume["batch"], kept.resume["step"]) == (1, 1, 4)
    assert kept.state["inc.double_conv.1.num_batches_tracked"] == 4


@pytest.mark.parametrize(("step", "kept"), [(1, 0), (3, 0), (5, 3)])
def test_weights_that_are_not_finite_are_never_written(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, step: int, kept: int
) -> None:
    """Of three steps an epoch; the images that are named are those of the step that did it."""
    taken: list[list[str]] = []
    whole = Stepper.step

    def overflows(self: Stepper, batch: Batch) -> tuple[float, bool]:
        done = whole(self, batch)
        taken.append([str(pair.image) for pair in batch.pairs])
        if len(taken) == step:
            with torch.no_grad():
                self._net.outc.conv.bias[1] = float("inf")
        return done

    monkeypatch.setattr(Stepper, "step", overflows)
    with pytest.raises(UserError, match=f"a weight is not finite at step {step} ") as caught:
        train(quick_options)
    assert len(taken) == step
    assert caught.value.seen == f"outc.conv.bias; images {', '.join(taken[-1])}"
    last = folder_of(quick_options) / "last.pth"
    assert f"the weights after step {kept} are in {last}" in str(caught.value)
    assert read_checkpoint(last).resume["step"] == kept


def test_a_folder_of_other_files_is_not_written_into(quick_options: TrainOptions) -> None:
    folder = folder_of(quick_options)
    folder.mkdir()
    (folder / "metrics.csv").write_text("mine")
    with pytest.raises(UserError, match="would write over") as caught:
        train(quick_options)
    assert caught.value.seen == "metrics.csv"
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_another_run_is_never_overwritten(quick_options: TrainOptions) -> None:
    best = train(with_recipe(quick_options, epochs=1))
    before = best.read_bytes()
    with pytest.raises(UserError, match="another run") as caught:
        train(quick_options)
    assert best.read_bytes() == before
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"--out {best.parent}-2 ")
    assert f"--resume {best.parent}" in caught.value.hint


def test_without_out_each_run_takes_a_new_folder(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = with_recipe(replace(quick_options, out=None), epochs=1)
    assert [train(options) for _ in range(2)] == [
        Path("runs/train/best.pth"),
        Path("runs/train-2/best.pth"),
    ]


def test_bad_data_and_devices_leave_no_folder(quick_options: TrainOptions) -> None:
    devices = ({"device": "gpu7"}, {"device": "meta"})
    for wrong in ({"classes": 3}, *devices, {"class_names": ("a", "b")}):
        with pytest.raises(UserError):
            train(replace(quick_options, **wrong))
    assert not folder_of(quick_options).exists()


def test_masks_of_images_of_one_size_come_in_a_batch() -> None:
    spec = ModelSpec(channels=1, classes=3, width=2)
    masknet = MaskNet(unet_from_checkpoint(_fresh(spec)), spec)
    images = [np.full((16, 18, 1), value, np.uint8) for value in (0, 128, 255)]
    assert masks_from_net(masknet, images, (20, 30)).shape == (3, 20, 30)


def _fresh(spec: ModelSpec) -> Checkpoint:
    from unetrt.training.unet import UNet

    return Checkpoint(spec, UNet(spec.channels, spec.classes, spec.width).state_dict())


def test_flags_default_to_the_reference_s() -> None:
    """Those of train.py in Pytorch-UNet, as numbers: both sides come from the same class here."""
    options = options_from_arguments(arguments())
    recipe = options.recipe
    assert (options.images, options.masks) == (Path("data/imgs"), Path("data/masks"))
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (5, 1, 1e-5)
    assert (options.scale, options.validation, options.classes) == (0.5, 10, 2)
    assert (options.channels, options.width, options.load) == (3, 64, None)
    assert (options.amp, options.bilinear, options.wandb) == (False, False, False)
    assert (recipe.optimizer, recipe.schedule) == ("rmsprop", "plateau")
    assert (recipe.loss, recipe.dice, recipe.class_weights) == ("ce+dice", "all", ())
    assert (recipe.augment, recipe.ema, options.crop, options.teacher) == (False, 0, None, None)


def test_flags_reach_the_options() -> None:
    options = options_from_arguments(
        arguments(
            *("-e", "7", "-b", "3", "-l", "0.01", "-f", "w.pth", "-s", "0.25", "-v", "20"),
            *("--amp", "--bilinear", "-c", "4", "--class-names", "a,b,c,d", "--width", "8"),
            *("--recipe", "modern", "--no-augment", "--crop", "64", "--seed", "5", "--out", "o"),
            *("--loss", "focal+dice", "--class-weights", "1,2,3,4.5", "--schedule", "cosine"),
            *(
                "--workers",
                "3",
                "--wandb",
                "--resume",
                "r",
                "--mask-values",
                "0:0:0,1:0:0,2:0:0,3:0:0",
            ),
        )
    )
    recipe = replace(RECIPES["modern"], epochs=7, batch_size=3, learning_rate=0.01, augment=False)
    recipe = replace(recipe, loss="focal+dice", schedule="cosine", class_weights=(1, 2, 3, 4.5))
    assert options == TrainOptions(
        load=Path("w.pth"),
        scale=0.25,
        validation=20,
        amp=True,
        bilinear=True,
        classes=4,
        class_names=("a", "b", "c", "d"),
        mask_values=((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)),
        width=8,
        recipe=recipe,
        crop=64,
        seed=5,
        out=Path("o"),
        workers=3,
        wandb=True,
        resume=Path("r"),
    )
    grey = options_from_arguments(arguments("--mask-values", "0,255", "--class-names", "a, b"))
    assert (grey.mask_values, grey.class_names) == ((0, 255), ("a", "b"))
    auto = options_from_arguments(arguments("--class-weights", "auto"))
    assert auto.recipe.class_weights == "auto"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--out=", "--out: seen: ''"),
        ("--mask-values a,b", "--mask-values: seen: 'a,b'"),
        ("--class-weights 1,x", "--class-weights: seen: 'x'"),
        ("--class-names a,a", "--class-names is wrong"),
        ("--class-names a,", "--class-names is wrong"),
        ("--seed 99999999999999999999", "--seed is wrong"),
        ("--scale 9", "--scale is wrong"),
        ("--width 0", "--width is wrong"),
        ("-c 300", "--classes is wrong"),
    ],
)
def test_wrong_flags_are_named_as_flags(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["train", *words.split()])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert says in capsys.readouterr().err


def test_a_short_cycle_is_warned_of(
    quick_options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    train(with_recipe(quick_options, epochs=1))
    [told] = [r.message for r in caplog.records if "one cycle" in r.message]
    assert "3 steps in all, 3 an epoch" in told
    assert "--epochs 334" in told
    assert not [r for r in caplog.records if "number of processes" in r.message]


def test_the_command_scores_on_folders_of_their_own(
    quick_options: TrainOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reference's recipe but for its optimiser; every pair of --images is trained on."""
    images, masks = write_dataset(tmp_path / "val", 3, (48, 64), seed=9)
    words = f"train --images {quick_options.images} --masks {quick_options.masks} --channels 1 "
    words += f"--val-images {images} --val-masks {masks} --optimizer adamw -c 4 --width 4 -s 1 "
    words += f"-e 1 -b 8 --device cpu --out {tmp_path / 'cli'}"
    assert main(words.split()) == 0
    assert "16 images to train on, 3 to score" in caplog.text
    last = read_checkpoint(tmp_path / "cli" / "last.pth")
    [group] = last.resume["optimizer"]["param_groups"]
    assert "betas" in group, "AdamW's"
    assert last.resume["step"] == 2
    options = replace(quick_options, val_images=images, val_masks=masks)
    data = load_training_data(options, None)
    for (image, _), sample in zip(last.golden, data.validation, strict=True):
        assert np.array_equal(image, sample.load()[0])
    matrix = validate(MaskNet(unet_from_checkpoint(last), last.spec), data.validation)
    score = matrix.scores(last.spec.class_names).pixel_accuracy
    assert float(metrics(tmp_path / "cli")[0]["pixel_accuracy"]) == pytest.approx(score, abs=1e-5)


def test_the_command_prints_the_checkpoint(
    quick_options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--images {quick_options.images} --masks {quick_options.masks} --channels 1 -c 4"
    words += f" --width 4 -s 1 -v 25 -e 1 -b 8 --out {tmp_path / 'cli'}"
    assert run(arguments(*words.split())) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cli' / 'best.pth'}\n"
