"""Training from options to the best checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ..contract.errors import UserError, as_word, first_line
from ..contract.files import sha256_from_file
from ..contract.log import log
from ..contract.spec import ModelSpec
from .checkpoint import Checkpoint, read_checkpoint
from .options import TrainOptions
from .ranks import Ranks, is_main_process, joined_ranks, local_rank, processes
from .report import Reporter
from .resume import TEACHER, Resumed, folder_of_run, read_resumed, require_same_data
from .rundir import RunFolder
from .samples import TrainingData, load_training_data
from .teacher import Teacher
from .threads import limit_threads
from .tracking import Tracker, require_wandb
from .trainer import Trainer
from .unet import UNet


def train(options: TrainOptions, given: Collection[str] = ()) -> Path:
    """Train and return the path of the best checkpoint by foreground mIoU on validation.

    given: names of the options that were asked for, though they may be the defaults, "recipe"
    for one that was named: a resumed run refuses those that are not its own. Where best.pth is
    gone, last.pth is returned.
    Raises UserError for options or data that do not fit, before the first epoch, and for a loss
    that is not finite. Ctrl-C and SIGTERM leave last.pth first, then raise KeyboardInterrupt.
    """
    run = options.resume
    with RunFolder(folder_of_run(run) if run else options.out, resumed=run is not None) as folder:
        if run and run.exists() and is_main_process():
            folder.lock()  # before its state is read: a run that goes on leaves that behind
        resumed = read_resumed(options, run, given) if run else None
        options = resumed.options if resumed else options
        if resumed and resumed.finished:
            return _finished(options, folder)
        if options.wandb and is_main_process():
            require_wandb()
        device = device_from_name(options.device)
        limit_threads()
        with joined_ranks(device.type == "cuda") as ranks:
            return _train(options, given, resumed, folder, device, ranks)


def _train(
    options: TrainOptions,
    given: Collection[str],
    resumed: Resumed | None,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks,
) -> Path:
    start = resumed.checkpoint if resumed else _start(options)
    teacher = _teacher(options, resumed, device)
    data = _data(options, start, ranks, device)
    if teacher:
        teacher.require_data(data.spec)
    if resumed:
        require_same_data(data, resumed.checkpoint)
    net = _network(data.spec, start, options.seed).to(device)
    # Every process has looked at the folder before the first one makes it.
    ranks.wait()
    state: dict[str, Any] = resumed.checkpoint.resume if resumed else {"given": sorted(given)}
    if ranks.is_main:
        folder.create(state.get("epoch", 0))
        for warning in data.warnings:
            log.warning(warning)
    folder.path = ranks.of_first(folder.path)
    reporter = _reporter(options, data, folder, state, ranks.is_main)
    trainer = Trainer(options, data, net, folder, reporter, ranks, state.get("given", ()), teacher)
    if resumed:
        trainer.load_state(state)
    return trainer.run()


def _data(
    options: TrainOptions, start: Checkpoint | None, ranks: Ranks, device: torch.device
) -> TrainingData:
    """Read it in all processes, or in none: the first one of a machine lists its problems."""
    data, problem = None, None
    try:
        data = load_training_data(options, start.spec if start and not start.bare else None)
    except UserError as error:
        problem = error
    failed = ranks.any(problem is not None, device)
    if data is not None and not failed:
        return data
    if problem is not None and (ranks.world == 1 or local_rank() == 0):
        raise problem
    raise UserError("another process tells what is wrong with the images and masks")


def _teacher(
    options: TrainOptions, resumed: Resumed | None, device: torch.device
) -> Teacher | None:
    if options.teacher is None:
        return None
    if resumed:
        _require_same_teacher(options.teacher, resumed)
    teacher = Teacher(options.teacher, options, device)
    if is_main_process():
        spec = teacher.spec
        log.info(f"taught by {options.teacher}, a U-Net of width {spec.width}")
    return teacher


def _require_same_teacher(path: Path, resumed: Resumed) -> None:
    there = path.is_file()
    if not there or sha256_from_file(path) != resumed.checkpoint.resume[TEACHER]:
        run = as_word(folder_of_run(resumed.options.resume or path))
        raise UserError(
            "the teacher of the run is not where it was",
            seen=f"another file {path}" if there else f"no file {path}",
            expected="the checkpoint that the run began with",
            hint=f"unetrt train --resume {run} --teacher CHECKPOINT   where it is now",
        )


def _finished(options: TrainOptions, folder: RunFolder) -> Path:
    if is_main_process():
        log.info(
            f"the run in {folder.path} is already finished, all {options.recipe.epochs} epochs; "
            f"unetrt train --load {as_word(folder.last)} …   starts a new one from its weights"
        )
    return folder.result


def _start(options: TrainOptions) -> Checkpoint | None:
    if options.load is None:
        return None
    start = read_checkpoint(options.load)
    _require_same_network(options, start.spec)
    trained = start.spec.scale
    if not start.bare and trained != options.scale and is_main_process():
        log.warning(
            f"{options.load} was trained with --scale {trained:g}, this run is with "
            f"{options.scale:g}: what it has learnt is of other sizes"
        )
    return start


def device_from_name(name: str) -> torch.device:
    """Raise UserError for a device that is not there; of several processes each has its own."""
    if name.startswith("cuda:") and processes() > 1:
        raise UserError(
            "--device names one GPU for several processes",
            seen=f"{name}, {processes()} processes",
            expected="auto or cuda: each process takes the GPU of its own number",
            hint="CUDA_VISIBLE_DEVICES=2,3 torchrun …   names the GPUs",
        )
    try:
        device = torch.device(_of_this_process(name))
        torch.zeros(1, device=device).item()  # "meta" has no numbers to give
    except (RuntimeError, AssertionError) as error:
        seen = first_line(error)
        raise UserError(
            f"no device {name}",
            seen=seen,
            expected="auto, cpu or cuda",
            hint="unetrt doctor   says what this machine can run",
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _of_this_process(name: str) -> str:
    own = f"cuda:{local_rank()}"
    if name == "auto":
        return own if torch.cuda.is_available() else "cpu"
    return own if name == "cuda" else name


def _require_same_network(options: TrainOptions, spec: ModelSpec) -> None:
    """Raise UserError with the flags that differ: a checkpoint fits one network."""
    names = ("channels", "classes", "width", "bilinear")
    differ = [name for name in names if getattr(spec, name) != getattr(options, name)]
    if differ:
        flags = [f"--{name} {getattr(spec, name)}" for name in differ if name != "bilinear"]
        if "bilinear" in differ:
            flags.append("--bilinear" if spec.bilinear else "no --bilinear")
        raise UserError(
            f"{options.load} holds another network than the one asked for",
            seen=", ".join(f"{name} {getattr(spec, name)} in the checkpoint" for name in differ),
            expected=", ".join(f"{name} {getattr(options, name)}" for name in differ),
            hint="train with " + " ".join(flags),
        )


def _network(spec: ModelSpec, start: Checkpoint | None, seed: int) -> UNet:
    # The weights are drawn on the CPU: no GPU's generator is moved, nor has to be kept.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear)
    if start is not None:
        net.load_state_dict(start.state)
    return net.float()


def _reporter(
    options: TrainOptions, data: TrainingData, folder: RunFolder, state: dict[str, Any], first: bool
) -> Reporter:
    run_id = state.get("wandb")
    tracker = Tracker(options, folder.path, run_id) if first and options.wandb else None
    return Reporter(folder, data, tracker, run_id)
