"""A run that was stopped and resumed ends bit-equal to one that was not."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unetrt.cli.train import add_arguments, run
from unetrt.contract.errors import UserError
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetrt.training.interrupts import Interrupts
from unetrt.training.losses import LossOptions, segmentation_loss
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.resume import options_from_json, options_to_json
from unetrt.training.train import train
from unetrt.training.trainer import Trainer

PLACE = "unetrt.training.step.segmentation_loss"


def folder_of(options: TrainOptions) -> Path:
    assert options.out is not None
    return options.out


def stopped_at(step: int, number: signal.Signals = signal.SIGINT) -> Callable[..., Tensor]:
    """The loss, with a signal sent in the middle of one step."""
    steps: list[int] = []

    def loss(logits: Tensor, truth: Tensor, options: LossOptions, ranks: Ranks) -> Tensor:
        steps.append(len(steps))
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return segmentation_loss(logits, truth, options, ranks)

    return loss


def interrupt(
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals = signal.SIGINT,
) -> None:
    monkeypatch.setattr(PLACE, stopped_at(step, number))
    with pytest.raises(KeyboardInterrupt):
        train(options)
    monkeypatch.setattr(PLACE, segmentation_loss)


def same(one: object, other: object) -> bool:
    """Bit-equal, through dictionaries and lists."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def end(folder: Path) -> tuple[Checkpoint, list[str]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return read_checkpoint(folder / "last.pth"), [line.rsplit(",", 1)[0] for line in lines]


def assert_same_end(one: Path, other: Path) -> None:
    first, lines = end(one)
    second, others = end(other)
    assert lines == others
    assert same(first.state, second.state)
    first.resume["options"] = second.resume["options"]  # their folders differ
    assert same(first.resume, second.resume)
    assert same(read_checkpoint(one / "best.pth").state, read_checkpoint(other / "best.pth").state)


REFERENCE = RecipeOptions(epochs=3, batch_size=4, learning_rate=1e-3)
RECIPES: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "schedule": "onecycle", "augment": True, "ema": 0.9},
    {"schedule": "cosine", "loss": "focal+dice", "class_weights": "auto"},
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("step", "number"),
    [(4, signal.SIGINT), pytest.param(6, signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_interrupted_and_resumed_is_bit_equal(
    quick_options: TrainOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any],
    step: int,
    number: signal.Signals,
) -> None:
    """Three batches an epoch: step 4 lies in the middle of an epoch, step 6 at its end."""
    options = replace(quick_options, recipe=replace(REFERENCE, **recipe))
    train(replace(options, out=tmp_path / "whole"))
    interrupt(options, monkeypatch, step, number)
    last = read_checkpoint(folder_of(options) / "last.pth")
    assert last.resume["step"] == step
    assert last.state["inc.double_conv.1.num_batches_tracked"] == step
    assert len(last.golden) == 4
    assert train(TrainOptions(resume=folder_of(options))) == folder_of(options) / "best.pth"
    assert_same_end(folder_of(options), tmp_path / "whole")


def test_a_run_that_was_killed_goes_on_from_its_last_epoch(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the line in metrics.csv and the checkpoint: the epoch comes again, once."""
    train(replace(quick_options, out=tmp_path / "whole"))
    keep, calls = Trainer._keep, []

    def killed(self: Trainer, score: float) -> None:
        calls.append(score)
        if len(calls) == 2:
            raise MemoryError
        keep(self, score)

    monkeypatch.setattr(Trainer, "_keep", killed)
    with pytest.raises(MemoryError):
        train(quick_options)
    assert len((folder_of(quick_options) / "metrics.csv").read_text().splitlines()) == 3
    train(TrainOptions(resume=folder_of(quick_options)))
    assert_same_end(folder_of(quick_options), tmp_path / "whole")


def test_the_flags_of_the_run_may_be_repeated_and_not_changed(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(quick_options, monkeypatch, 2)
    last = folder_of(quick_options) / "last.pth"
    before = last.read_bytes()
    other = replace(quick_options, width=8, recipe=replace(quick_options.recipe, epochs=9))
    with pytest.raises(UserError, match="keeps the options") as caught:
        train(replace(other, resume=last))
    assert caught.value.seen == "--width 8, --epochs 9"
    assert caught.value.expected == "--width 4, --epochs 2"
    assert last.read_bytes() == before
    train(replace(quick_options, resume=last, workers=0))
    assert read_checkpoint(last).resume["epoch"] == 2


def words_of(options: TrainOptions, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--resume", str(folder_of(options)), *more])


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ("--width 64", "--width 64"),
        ("--recipe reference", "--epochs 5, --batch-size 1"),
        ("--no-augment", "no --augment"),
        ("--classes 4 --width 4", ""),
    ],
)
def test_a_flag_that_says_the_default_is_no_less_given(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, flags: str, wrong: str
) -> None:
    interrupt(quick_options, monkeypatch, 2)
    args = words_of(quick_options, *flags.split())
    if not wrong:
        assert run(args) == 0
        return
    with pytest.raises(UserError, match="keeps the options") as caught:
        run(args)
    assert str(caught.value.seen).startswith(wrong)


def test_a_finished_run_says_so_and_names_a_file_that_is_there(
    quick_options: TrainOptions,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    best = train(quick_options)
    last = best.with_name("last.pth")
    before = last.read_bytes()
    for expected in (best, last):
        assert run(words_of(quick_options)) == 0
        assert capsys.readouterr().out == f"{expected}\n"
        best.unlink(missing_ok=True)
    assert sum("already finished, all 2 epochs" in r.message for r in caplog.records) == 2
    assert last.read_bytes() == before


def test_changed_pixels_are_refused(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pixel of one image, then of one mask; a checkpoint of before the checksums goes on."""
    copies = replace(quick_options, images=tmp_path / "imgs", masks=tmp_path / "masks")
    shutil.copytree(quick_options.images, copies.images)
    shutil.copytree(quick_options.masks, copies.masks)
    interrupt(copies, monkeypatch, 2)
    last = folder_of(copies) / "last.pth"
    for folder, value in ((copies.images, 9), (copies.masks, 1)):
        path = sorted(folder.iterdir())[3]
        before = path.read_bytes()
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] = value - int(pixels[0, 0] == value)
        Image.fromarray(pixels).save(path)
        with pytest.raises(UserError, match="not those that the run began with") as caught:
            train(TrainOptions(resume=last))
        assert f"{path.stem} 48 64 has other pixels" in str(caught.value.seen)
        if folder == copies.images:
            path.write_bytes(before)
    checkpoint = read_checkpoint(last)
    del checkpoint.resume["pixels"]
    write_checkpoint(last, checkpoint)
    train(TrainOptions(resume=last))


def test_a_validation_that_fails_costs_no_step(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(quick_options, out=tmp_path / "whole"))

    def fails(*arguments: object) -> None:
        raise UserError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("unetrt.training.trainer.validate", fails)
        with pytest.raises(UserError, match="no memory"):
            train(quick_options)
    last = read_checkpoint(folder_of(quick_options) / "last.pth").resume
    assert (last["epoch"], last["batch"], last["step"]) == (0, 3, 3)
    train(TrainOptions(resume=folder_of(quick_options)))
    assert_same_end(folder_of(quick_options), tmp_path / "whole")


@pytest.mark.parametrize(
    ("how", "kept", "says"),
    [
        ("data", 2, r"after step 2 \(epoch 1\); the weights after step 2 are in"),
        ("ctrl-c", 2, "^$"),
        ("nan", 1, "the loss or its gradient is not finite at step 2"),
    ],
)
def test_files_that_are_gone_cost_no_step(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    how: str, kept: int, says: str,
) -> None:  # fmt: skip
    """None of them is in memory; the disk goes in the second step of three."""
    folders = tmp_path / "imgs", tmp_path / "masks"
    for source, copy in zip((quick_options.images, quick_options.masks), folders, strict=True):
        shutil.copytree(source, copy)
    options = replace(quick_options, images=folders[0], masks=folders[1], workers=0)
    steps: list[int] = []

    def loss(logits: Tensor, truth: Tensor, rules: LossOptions, ranks: Ranks) -> Tensor:
        steps.append(len(steps))
        found = segmentation_loss(logits, truth, rules, ranks)
        if len(steps) < 2:
            return found
        for folder in folders:
            shutil.rmtree(folder)
        if how == "ctrl-c":
            os.kill(os.getpid(), signal.SIGINT)
        return found * (float("nan") if how == "nan" else 1)

    monkeypatch.setattr("unetrt.training.samples.half_of_memory", lambda: 0)
    monkeypatch.setattr(PLACE, loss)
    with pytest.raises(KeyboardInterrupt if how == "ctrl-c" else UserError, match=says):
        train(options)
    last = read_checkpoint(folder_of(options) / "last.pth")
    assert (last.resume["epoch"], last.resume["batch"], last.resume["step"]) == (0, kept, kept)
    assert len(last.golden) == 4


def test_other_data_is_refused(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(quick_options, monkeypatch, 2)
    fewer = tmp_path / "fewer", tmp_path / "fewer-masks"
    for source, folder in zip((quick_options.images, quick_options.masks), fewer, strict=True):
        folder.mkdir()
        for path in sorted(source.iterdir())[1:]:
            (folder / path.name).write_bytes(path.read_bytes())
    moved = TrainOptions(resume=folder_of(quick_options), images=fewer[0], masks=fewer[1])
    with pytest.raises(UserError, match="not those that the run began with"):
        train(moved)


def test_a_file_without_state_is_refused(quick_options: TrainOptions, tmp_path: Path) -> None:
    best = train(quick_options)
    with pytest.raises(UserError, match="does not say how its run stood"):
        train(TrainOptions(resume=best))
    with pytest.raises(UserError, match="no checkpoint at"):
        train(TrainOptions(resume=tmp_path))


def test_options_survive_their_file() -> None:
    options = TrainOptions(
        images=Path("a"), val_images=Path("b"), val_masks=Path("c"), class_names=("x", "y"),
        recipe=RecipeOptions(class_weights=(1.0, 2.5), schedule="cosine"), load=Path("w.pth"),
        ignore_index=7, mask_values=((0, 0, 0), (1, 2, 3)),
    )  # fmt: skip
    assert options_from_json(options_to_json(options)) == options
    older = json.loads(options_to_json(TrainOptions()))
    del older["mask_values"]
    assert options_from_json(json.dumps(older)) == TrainOptions()
    assert options_from_json(options_to_json(TrainOptions())) == TrainOptions()
    auto = TrainOptions(recipe=RecipeOptions(class_weights="auto"))
    assert options_from_json(options_to_json(auto)) == auto
    with pytest.raises(UserError, match="another version"):
        options_from_json('{"recipe": {}}')


def test_ctrl_c_on_the_command_line_saves_first(
    quick_options: TrainOptions, tmp_path: Path
) -> None:
    folder = tmp_path / "cli"
    words = f"--images {quick_options.images} --masks {quick_options.masks} --channels 1 -c 4"
    words += f" --width 4 -s 1 -v 25 -e 500 -b 4 --device cpu --out {folder}"
    command = [sys.executable, "-m", "unetrt.cli", "train", *words.split()]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one)
    limit = time.monotonic() + 60
    while not (folder / "last.pth").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"unetrt train --resume {folder}" in stderr
    assert "Traceback" not in stderr
    last = read_checkpoint(folder / "last.pth").resume
    assert last["step"] == 3 * last["epoch"] + last["batch"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals are lost here")
def test_a_lost_terminal_saves_first(quick_options: TrainOptions, tmp_path: Path) -> None:
    """A terminal of its own is closed, with the progress bar in it."""
    import pty

    folder = tmp_path / "cli"
    words = f"--images {quick_options.images} --masks {quick_options.masks} --channels 1 -c 4"
    words += f" --width 4 -s 1 -v 25 -e 5000 -b 4 --device cpu --out {folder}"
    code = (
        f"import sys; from unetrt.cli.main import main; sys.exit(main({['train', *words.split()]}))"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while not (folder / "last.pth").exists() and time.monotonic() < limit:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)
    before = read_checkpoint(folder / "last.pth").resume["step"]
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    last = read_checkpoint(folder / "last.pth").resume
    assert last["step"] == 3 * last["epoch"] + last["batch"] >= before


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_what_is_ignored_stays_so(name: str) -> None:
    """Under nohup the terminal, in a shell's background job Ctrl-C."""
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    number = getattr(signal, name)
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts():
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, handler)


def test_a_signal_that_is_passed_on_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Ctrl-C the terminal tells torchrun and its processes, and torchrun tells them again."""
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested
        now = time.monotonic()
        monkeypatch.setattr("unetrt.training.interrupts.time.monotonic", lambda: now + 60)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_does_not_cost_what_is_being_written(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun sends one, once another process has ended."""

    def write(path: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.resume.get("step") == 2:
            signal.raise_signal(signal.SIGINT)
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr("unetrt.training.trainer.write_checkpoint", write)
    interrupt(quick_options, monkeypatch, 2)
    assert read_checkpoint(folder_of(quick_options) / "last.pth").resume["step"] == 2
