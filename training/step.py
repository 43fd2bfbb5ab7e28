"""One step: forward, loss, backward and optimiser, in any precision, within the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..contract.errors import DeviceMemoryError, first_line
from ..contract.log import log
from .batches import Batch
from .finite import first_not_finite
from .losses import LossOptions, segmentation_loss
from .masknet import MaskNet
from .memory import short_of_memory
from .ranks import Ranks
from .unet import UNet

CLIP_NORM = 1.0


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
    """amp: the dtype to compute in where that is safe; None is fp32."""

    loss: LossOptions
    amp: torch.dtype | None = None


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
        self._device = next(net.parameters()).device
        # float16 overflows above 65504: its loss is scaled to what its gradients can hold.
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=options.amp == torch.float16)

    @property
    def amp(self) -> bool:
        return self._options.amp is not None

    def step(self, batch: Batch) -> tuple[float, bool]:
        """Return the loss, and whether the weights were moved: float16 skips an overflow.

        Raises NotFiniteError, and DeviceMemoryError where the memory does not suffice.
        """
        before = [buffer.clone() for buffer in self._net.buffers()]
        try:
            loss, norm = self._gradients(batch, before)
            self._require_finite(loss, norm)
        except (NotFiniteError, DeviceMemoryError):
            self._restore(before)
            raise
        moved = bool(torch.isfinite(norm))
        self.whole = False
        with self._memory_told():
            self.scaler.step(self._optimizer)
        self.whole = True
        self.scaler.update()
        return loss.item(), moved

    def _gradients(self, batch: Batch, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Try once more with less memory where it did not suffice."""
        try:
            with self._memory_told():
                return self._backward(batch)
        except DeviceMemoryError:
            if self._net.recompute or self._ranks.world > 1:
                raise
        self._net.recompute = True
        self._restore(before)
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        log.warning("out of memory: from here on blocks are computed twice, with the same results")
        with self._memory_told():
            return self._backward(batch)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the norm of its gradient, which is clipped."""
        images = batch.images.to(self._device, non_blocking=True)
        truth = batch.truth.to(self._device, non_blocking=True).long()
        self._resized = truth.shape[1:] != images.shape[1:3]
        self._optimizer.zero_grad(set_to_none=True)
        amp = self._options.amp
        with torch.autocast(self._device.type, amp, enabled=amp is not None):
            logits = self._masknet.logits(images)
        loss = segmentation_loss(logits, truth, self._options.loss, self._ranks)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self._optimizer)
        return loss, torch.nn.utils.clip_grad_norm_(self._net.parameters(), CLIP_NORM)

    def _require_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Stop before the step that would write the numbers into the weights."""
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not torch.isfinite(loss if overflow else loss + norm):
            seen = f"loss {loss.item():g}, gradient norm {norm.item():g}"
            raise NotFiniteError("the loss or its gradient", seen)
        # A variance may overflow where the loss does not: what is divided by it is zero.
        name = first_not_finite(self._net.named_buffers())
        if name is not None:
            raise NotFiniteError("a running statistic", name)

    def _restore(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._net.buffers(), before, strict=True):
                buffer.copy_(value)

    @contextmanager
    def _memory_told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            raise _too_large(error, self._device, self._resized) from error


def _too_large(error: Exception, device: torch.device, resized: bool) -> DeviceMemoryError:
    on_gpu = device.type == "cuda"
    message = "the batch does not fit into the memory of this machine"
    return DeviceMemoryError(
        "the batch does not fit into the memory of the GPU" if on_gpu else message,
        seen=first_line(error),
        hint="a smaller --batch-size, --crop or --scale"
        + (", or --loss-size network" if resized else "")
        + (", or --amp" if on_gpu else ""),
    )
