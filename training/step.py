"""One step: forward, loss, backward and optimiser, in any precision, within the memory."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..contract.errors import DeviceMemoryError, first_line
from ..contract.log import log
from ..contract.spec import MIN_SIDE
from .batches import Batch
from .finite import first_not_finite, norm_of
from .losses import LossOptions, segmentation_loss
from .masknet import MaskNet
from .memory import short_of_memory
from .ranks import Ranks
from .teacher import Teacher, imitation_loss
from .unet import UNet
from .unison import Unison

CLIP_NORM = 1.0
REHEARSED = 2, MIN_SIDE, MIN_SIDE
"""Images, height and width of the batch that shows what the processes exchange in a step."""


class NotFiniteError(Exception):
    """The step was not taken: weights and running statistics are those of before it.

    what: is not finite.
    """

    def __init__(self, what: str, seen: str) -> None:
        super().__init__(seen)
        self.what = what


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes in it; else float16 on a GPU, None (fp32) on a CPU."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able else torch.float16
    return torch.bfloat16 if cpu_computes_bf16() else None


def cpu_computes_bf16() -> bool:
    """Elsewhere PyTorch emulates bfloat16, many times slower than it computes in fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """amp: the dtype to compute in where that is safe; None is fp32.

    teacher: a network to be like, which has `teacher_weight` of the loss.
    """

    loss: LossOptions
    amp: torch.dtype | None = None
    teacher: Teacher | None = None
    teacher_weight: float = 0.0


class Stepper:
    """Moves the weights of `net` by one batch at a time."""

    def __init__(
        self, net: UNet, masknet: MaskNet, optimizer: Optimizer, options: StepOptions, ranks: Ranks
    ) -> None:
        """masknet: wraps `net`, in what joins the processes if there are several.

        whole: the weights are those of a whole step; not if the optimiser was stopped in its work.
        """
        self.whole = True
        self._resized = False  # the last batch's truth is larger than the network's image
        self._net, self._masknet = net, masknet
        self._optimizer, self._options, self._ranks = optimizer, options, ranks
        self._unison = Unison(ranks)
        self._device = next(net.parameters()).device
        # float16 overflows above 65504: its loss is scaled to what its gradients can hold.
        self.scaler = self._new_scaler()

    @property
    def amp(self) -> bool:
        return self._options.amp is not None

    def _new_scaler(self) -> torch.amp.GradScaler:
        half = self._options.amp == torch.float16
        return torch.amp.GradScaler(self._device.type, enabled=half)

    def step(self, batch: Batch) -> tuple[float, bool]:
        """Return the loss, and whether the weights were moved: float16 skips an overflow.

        Raises NotFiniteError, and DeviceMemoryError where the memory does not suffice.
        """
        before = _Kept(self._net.buffers())
        try:
            loss, norm = self._numbers(*self._gradients(batch, before))
        except (NotFiniteError, DeviceMemoryError, RuntimeError):  # as of a process that is gone
            before.restore()
            raise
        self.whole = False
        with self._memory_told():
            self.scaler.step(self._optimizer)
        self.whole = True
        self.scaler.update()
        return loss, math.isfinite(norm)

    def _gradients(self, batch: Batch, before: _Kept) -> tuple[Tensor, Tensor]:
        """Try once more with less memory where it did not suffice, in whichever process."""
        if not self._unison.learnt:
            self._rehearse(before)
        found = self._tried(batch)
        if isinstance(found, DeviceMemoryError) and not self._net.recompute:
            self._save_memory(before)
            found = self._tried(batch)
        if isinstance(found, DeviceMemoryError):
            raise found
        return found

    def _tried(self, batch: Batch) -> tuple[Tensor, Tensor] | DeviceMemoryError:
        """Return an error in every process where one of them is short of memory."""
        found: tuple[Tensor, Tensor] | DeviceMemoryError
        self._unison.begin()
        try:
            found = self._backward(batch)
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            # Not raised here: its traceback would keep what the step has computed.
            found = _too_large(first_line(error), self._device, self._resized)
        short = isinstance(found, DeviceMemoryError)
        if isinstance(found, DeviceMemoryError):
            torch.cuda.empty_cache()
            if not self._unison.finish():
                raise found
        if self._ranks.any(short, self._device) == short:
            return found
        return _too_large("another process is short of it", self._device, self._resized)

    def _save_memory(self, before: _Kept) -> None:
        self._net.recompute = True
        before.restore()
        self._optimizer.zero_grad(set_to_none=True)
        self._renew_scaler()
        if self._ranks.world > 1:
            # One whose backward pass was cut short takes no other; its hooks have to go first.
            self._masknet.net = self._net
            gc.collect()
            self._masknet.net = self._ranks.wrapped(self._net)
            self._rehearse(before)
        torch.cuda.empty_cache()
        if self._ranks.is_main:
            log.warning(
                "out of memory: from here on blocks are computed twice, with the same results"
            )

    def _rehearse(self, before: _Kept) -> None:
        """Let every process learn, from a small batch, what all of them exchange in a step."""
        images = torch.zeros((*REHEARSED, self._masknet.spec.channels), dtype=torch.uint8)
        batch = Batch(images, torch.zeros(REHEARSED, dtype=torch.uint8), [])

        def step() -> None:
            self._backward(batch)
            self._renew_scaler()

        with self._memory_told():
            self._unison.learn(step)
        before.restore()

    def _renew_scaler(self) -> None:
        """One that was stopped after it had unscaled the gradients refuses to do so again."""
        scaler = self._new_scaler()
        scaler.load_state_dict(self.scaler.state_dict())
        self.scaler = scaler

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the norm of its gradient, which is clipped."""
        images = batch.images.to(self._device, non_blocking=True)
        truth = batch.truth.to(self._device, non_blocking=True).long()
        self._resized = truth.shape[1:] != images.shape[1:3]
        self._optimizer.zero_grad(set_to_none=True)
        amp = self._options.amp
        with torch.autocast(self._device.type, amp, enabled=amp is not None):
            # First: what it needs meanwhile is free again before features are kept for gradients.
            taught = self._options.teacher.logits(images) if self._options.teacher else None
            logits = self._masknet.logits(images)
        loss = segmentation_loss(logits, truth, self._options.loss, self._ranks)
        if taught is not None:
            weight = self._options.teacher_weight
            loss = (1 - weight) * loss + weight * imitation_loss(logits, taught, truth, self._ranks)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self._optimizer)
        return loss, torch.nn.utils.clip_grad_norm_(self._net.parameters(), CLIP_NORM)

    def _numbers(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """Loss and norm, or stop before the step that would write them into the weights.

        Read in one piece: each reading waits until a GPU has nothing left to do.
        """
        statistics = norm_of(self._net.buffers())
        read = torch.stack([number.detach().double() for number in (loss, norm, statistics)])
        loss_now, norm_now, statistics_now = read.tolist()
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not math.isfinite(loss_now if overflow else loss_now + norm_now):
            seen = f"loss {loss_now:g}, gradient norm {norm_now:g}"
            raise NotFiniteError("the loss or its gradient", seen)
        # A variance may overflow where the loss does not: what is divided by it is zero.
        if not math.isfinite(statistics_now):
            name = first_not_finite(self._net.named_buffers())
            if name is not None:
                raise NotFiniteError("a running statistic", name)
        return loss_now, norm_now

    @contextmanager
    def _memory_told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            raise _too_large(first_line(error), self._device, self._resized) from error


class _Kept:
    """Buffers as they are now: one copy of all of a kind, which a GPU makes in one go."""

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self._kinds: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in buffers:
            self._kinds[buffer.dtype].append(buffer)
        self._copies = {
            kind: torch.cat([buffer.flatten() for buffer in found])
            for kind, found in self._kinds.items()
        }

    def restore(self) -> None:
        with torch.no_grad():
            for kind, found in self._kinds.items():
                parts = torch.split(self._copies[kind], [buffer.numel() for buffer in found])
                for buffer, part in zip(found, parts, strict=True):
                    buffer.copy_(part.view_as(buffer))


def _too_large(seen: str, device: torch.device, resized: bool) -> DeviceMemoryError:
    on_gpu = device.type == "cuda"
    message = "the batch does not fit into the memory of this machine"
    return DeviceMemoryError(
        "the batch does not fit into the memory of the GPU" if on_gpu else message,
        seen=seen,
        hint="a smaller --batch-size, --crop or --scale"
        + (", or --loss-size network" if resized else "")
        + (", or --amp" if on_gpu else ""),
    )
