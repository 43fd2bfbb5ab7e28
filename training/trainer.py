"""The loop of one run: epochs of steps, each followed by validation and a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import DeviceMemoryError, UserError, as_word, first_line
from ..contract.log import log
from ..contract.metrics import Scores
from .average import WeightAverage
from .batches import Batch, Batches, batch_options
from .checkpoint import Checkpoint, golden_part, write_checkpoint
from .finite import first_not_finite
from .interrupts import Interrupts, Stopped
from .masknet import MaskNet
from .optim import RateSchedule, optimizer_from_recipe, resume_optimizer
from .options import TrainOptions
from .ranks import Ranks, loss_told, progress_of_first, sync_batchnorms
from .report import EpochResult, Reporter
from .resume import (
    CHECKSUMS,
    TEACHER,
    data_checksums,
    data_names,
    options_to_json,
    with_whole_paths,
)
from .rundir import RunFolder
from .samples import TrainingData
from .step import NotFiniteError, StepOptions, Stepper, amp_dtype
from .teacher import Teacher
from .unet import UNet
from .validate import validate, warn_of_one_class
from .weights import loss_from_recipe

GOLDEN_IMAGES = 4
FEW_STEPS = 1000
"""One cycle of the rate in fewer steps is over before much is learnt."""


class DivergedError(UserError):
    """Numbers that are not finite: the message says what is left, and that a new run is needed."""


@dataclass
class Position:
    """Where a run stands: `batch` batches of epoch `epoch` + 1 are done, their losses summed."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    best: float = -1.0


class Trainer:
    """One run: the network, what moves it, and where it is written."""

    def __init__(
        self,
        options: TrainOptions,
        data: TrainingData,
        net: UNet,
        folder: RunFolder,
        reporter: Reporter,
        ranks: Ranks,
        given: Collection[str] = (),
        teacher: Teacher | None = None,
    ) -> None:
        """Take `net`, which lies on its device already. given: the options that the run names."""
        recipe = options.recipe
        self._options, self._data, self._ranks = options, data, ranks
        self._folder, self._reporter = folder, reporter
        self._device = next(net.parameters()).device
        # Channels last is what the images already are, and the faster layout on CPU and GPU.
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sync_batchnorms(net, ranks, self._device)
        self._masknet = MaskNet(net, data.spec)
        self._average = WeightAverage(net, recipe.ema) if recipe.ema else None
        # What is scored and kept.
        self._result = MaskNet(self._average.net, data.spec) if self._average else self._masknet
        self._batch_options = batch_options(options, self._device)
        self._batches = Batches(data.train, self._batch_options, ranks)
        self._optimizer = optimizer_from_recipe(net.parameters(), recipe)
        self._schedule = RateSchedule(
            self._optimizer, recipe, steps=recipe.epochs * len(self._batches)
        )
        step_options = StepOptions(
            loss=loss_from_recipe(recipe, data.spec, data.train),
            amp=self._amp(),
            teacher=teacher,
            teacher_weight=recipe.teacher_weight,
        )
        joined = MaskNet(ranks.wrapped(net), data.spec)
        self._stepper = Stepper(net, joined, self._optimizer, step_options, ranks)
        # Read here: the files may be what is gone when a run has to be saved.
        first = data.validation[:GOLDEN_IMAGES] if ranks.is_main else []
        self._golden = [golden_part(sample.load()[0], sample.size) for sample in first]
        self._at = Position()
        self._kept = 0  # the step that last.pth is of
        self._interrupts = Interrupts()
        self._constant = {
            "data": data_names(data),
            CHECKSUMS: data_checksums(data),
            "given": list(given),
            TEACHER: teacher.digest if teacher else None,
        }

    def _amp(self) -> torch.dtype | None:
        if not self._options.amp:
            return None
        found = amp_dtype(self._device)
        if found is None and self._ranks.is_main:
            log.warning("this processor has no bfloat16: --amp changes nothing, fp32 is faster")
        return found

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what last.pth holds beside the weights."""
        resume_optimizer(self._optimizer, state["optimizer"])
        self._schedule.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty where the run began on a device that needs none
            self._stepper.scaler.load_state_dict(state["scaler"])
        if self._average is not None:  # the checkpoint's own weights are the average
            self._masknet.net.load_state_dict(state["trained"])
            self._average.steps = state["averaged"]
        self._at = Position(**{field.name: state[field.name] for field in fields(Position)})
        self._kept = self._at.step

    def run(self) -> Path:
        """All epochs; a signal leaves last.pth of the last whole step, then raises Stopped.

        So do errors that a user can mend, as files that are gone: they say how to go on.
        """
        with self._interrupts:  # to the end: torchrun's SIGTERM would cost what is being written
            return self._run()

    def _run(self) -> Path:
        failed = True
        if self._ranks.is_main:
            self._reporter.describe(self._masknet, str(self._device))
            self._warn_of_recipe()
        try:
            with loss_told():
                self._ranks.wait()  # until a signal finds all of them prepared
                if self._at.step == 0:
                    self._write_last()  # what the first step can go back to
                while self._at.epoch < self._options.recipe.epochs:
                    self._run_epoch()
            failed = False
        except Stopped:
            self._write_last()
            failed = False
            if self._ranks.is_main:
                resume = f"unetrt train --resume {as_word(self._folder.path)}"
                log.info(f"interrupted: {resume}   goes on from here")
            raise
        except DeviceMemoryError as error:
            raise self._short_of_memory(error) from error
        except DivergedError:
            raise
        except (UserError, OSError) as error:
            told = self._cut_short(error)
            if told is None:
                raise
            raise told from error
        finally:
            if self._ranks.is_main:
                self._reporter.close(failed)
        return self._folder.result

    def _warn_of_recipe(self) -> None:
        recipe, batches = self._options.recipe, len(self._batches)
        steps = recipe.epochs * batches
        if recipe.schedule == "onecycle" and steps < FEW_STEPS and self._at.step == 0:
            log.warning(
                f"{steps} steps in all, {batches} an epoch, are few for one cycle of the rate: "
                f"--epochs {-(-FEW_STEPS // batches)} gives {FEW_STEPS:,}"
            )
        if recipe.batch_size < self._ranks.world:
            log.warning(
                f"--batch-size {recipe.batch_size} is below the number of processes, "
                f"{self._ranks.world}: images are repeated so that each process has one"
            )

    def _run_epoch(self) -> None:
        start, skipped = time.perf_counter(), self._at.batch
        self._train_epoch()
        step_seconds = time.perf_counter() - start
        self._write_last()  # what was learnt is kept, whatever becomes of the validation
        rate = self._schedule.rate
        scores = self._validate()
        count = len(self._batches)
        mean = self._at.loss / count
        self._at.epoch, self._at.batch, self._at.loss = self._at.epoch + 1, 0, 0.0
        result = EpochResult(
            epoch=self._at.epoch,
            step=self._at.step,
            loss=mean,
            rate=rate,
            scores=scores,
            seconds=time.perf_counter() - start,
            images_per_second=len(self._data.train) * (count - skipped) / count / step_seconds,
        )
        if self._ranks.is_main:
            net = self._masknet.net
            self._reporter.tell(result, self._options.recipe.epochs, self._result, net)
        if scores.foreground_miou is not None:
            self._schedule.end_epoch(scores.foreground_miou)
        self._keep(scores.foreground_miou)

    def _train_epoch(self) -> None:
        self._masknet.train()
        work = f"epoch {self._at.epoch + 1}/{self._options.recipe.epochs}"
        left = len(self._batches) - self._at.batch
        with progress_of_first(work, left, "steps") as advance:
            for batch in self._batches.epoch(self._at.epoch, self._at.batch):
                self.train_step(batch)
                advance(1)
                if self._ranks.any(self._interrupts.requested, self._device):
                    raise Stopped

    def train_step(self, batch: Batch) -> None:
        try:
            loss, moved = self._stepper.step(batch)
        except NotFiniteError as error:
            self._write_last()
            raise self._diverged(error.what, f"{error}; {_files(batch)}") from error
        # Its statistics were looked at before the step.
        name = first_not_finite(self._masknet.net.named_parameters())
        if name is not None:
            raise self._diverged("a weight", f"{name}; {_files(batch)}")
        if moved:
            self._schedule.end_step()
            if self._average is not None:
                self._average.follow()
        self._at.batch, self._at.step = self._at.batch + 1, self._at.step + 1
        self._at.loss += loss
        self._reporter.tell_step(self._at.step, loss, len(self._batches))

    def _validate(self) -> Scores:
        # Several processes stop together, and they meet again only at the next step.
        check = self._interrupts.check if self._ranks.world == 1 else None
        workers = self._batch_options.workers
        matrix = validate(self._result, self._data.validation, self._ranks, check, workers)
        names = self._data.spec.class_names
        if self._ranks.is_main:
            warn_of_one_class(matrix, names)
        return matrix.scores(names)

    def _diverged(self, what: str, seen: str) -> DivergedError:
        """--resume keeps the run's rate: the weights are what a new run can start from."""
        last, rate = as_word(self._folder.last), f"-l {self._options.recipe.learning_rate / 10:g}"
        amp = ", without --amp" if self._stepper.amp else ""
        return DivergedError(
            f"{what} is not finite at {self._place()}; {self._told_last()}",
            seen=seen,
            hint=f"unetrt train --load {last} {rate} …   a lower rate{amp}",
        )

    def _short_of_memory(self, error: DeviceMemoryError) -> DeviceMemoryError:
        """The state of before the step is kept, unless the optimiser was in the middle of it."""
        if self._stepper.whole and self._ranks.is_main:
            self._write_last()
        return DeviceMemoryError(
            f"{error.message}, at {self._place()}{self._told_kept()}",
            seen=error.seen,
            hint=f"unetrt train --load {as_word(self._folder.last)} …   with {error.hint}",
        )

    def _cut_short(self, error: UserError | OSError) -> UserError | None:
        """Keep the steps of this epoch, and say how to go on; None where nothing is kept yet."""
        step = self._at.step
        if self._stepper.whole and self._ranks.is_main and step > self._kept:
            with suppress(UserError):  # the disk may be what has failed
                self._write_last()
        if not self._folder.last.exists():
            return None
        found = error if isinstance(error, UserError) else UserError(first_line(error))
        first = f"{found.hint}; then " if found.hint else ""
        run, epoch = as_word(self._folder.path), max(1, self._at.epoch + bool(self._at.batch))
        return UserError(
            f"{found.message}, after step {step} (epoch {epoch}){self._told_kept()}",
            seen=found.seen,
            expected=found.expected,
            hint=f"{first}unetrt train --resume {run}   goes on from there",
        )

    def _place(self) -> str:
        return f"step {self._at.step + 1} (epoch {self._at.epoch + 1})"

    def _told_last(self) -> str:
        return f"the weights after step {self._kept} are in {self._folder.last}"

    def _told_kept(self) -> str:
        """Only the first process knows what it has written."""
        return f"; {self._told_last()}" if self._ranks.is_main else ""

    def _keep(self, score: float | None) -> None:
        """Without a score best.pth is the last epoch's, until there is one."""
        if score is None and self._ranks.is_main:
            log.warning("no foreground in the validation's truth nor prediction: no score")
        if self._at.best < 0 if score is None else score > self._at.best:
            self._at.best = self._at.best if score is None else score
            if self._ranks.is_main:
                write_checkpoint(self._folder.best, self._checkpoint())
        self._write_last()

    def _write_last(self) -> None:
        if not self._ranks.is_main:
            self._kept = self._at.step
            return
        checkpoint = self._checkpoint()
        checkpoint.resume = {
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._schedule.state_dict(),
            "scaler": self._stepper.scaler.state_dict(),
            "options": options_to_json(with_whole_paths(self._options)),
            **self._constant,
            "wandb": self._reporter.run_id,
            **asdict(self._at),
        }
        if self._average is not None:
            trained = _on_host(self._masknet.net)
            checkpoint.resume |= {"trained": trained, "averaged": self._average.steps}
        write_checkpoint(self._folder.last, checkpoint)
        self._kept = self._at.step

    def _checkpoint(self) -> Checkpoint:
        """Raise UserError rather than replace a good file by weights that none can use."""
        state = _on_host(self._result.net)
        name = first_not_finite(state.items())
        if name is not None:
            raise self._diverged("a weight", name)
        return Checkpoint(self._data.spec, state, self._golden)


def _on_host(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.cpu().contiguous() for k, v in net.state_dict().items()}


def _files(batch: Batch) -> str:
    return f"images {', '.join(str(pair.image) for pair in batch.pairs)}"
