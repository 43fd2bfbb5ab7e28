"""A trained network whose answers another one learns beside the masks: distillation.

Masks that were drawn by hand differ from hand to hand, mostly at borders; what a trained network
is sure of says more of a pixel than one drawn class (Hinton, Vinyals and Dean 2015).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract.errors import UserError
from ..contract.files import sha256_from_file
from ..contract.spec import ModelSpec
from ..contract.types import NO_CLASS
from .checkpoint import read_checkpoint, unet_from_checkpoint
from .losses import mean_dice
from .masknet import MaskNet
from .options import TrainOptions, values_text
from .ranks import Ranks


class Teacher:
    """Gives what a checkpoint's network says of the images of a batch."""

    def __init__(self, path: Path, options: TrainOptions, device: torch.device) -> None:
        """options: of the network that learns.

        Raises UserError for what is no checkpoint, and for one of other images or classes.
        """
        checkpoint = read_checkpoint(path)
        self._path, self._bare = path, checkpoint.bare
        self.digest = sha256_from_file(path)
        self.spec = checkpoint.spec
        names = ("channels", "classes") if self._bare else ("channels", "classes", "scale")
        hint = "a --teacher trained with this run's --classes, --channels and --scale"
        self._require(options, names, hint)
        net = unet_from_checkpoint(checkpoint).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._masknet = MaskNet(net.requires_grad_(False), checkpoint.spec)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """uint8 (N, h, w, C) → logits (N, classes, h, w)."""
        return self._masknet.logits(images)

    def require_data(self, spec: ModelSpec) -> None:
        """Raise UserError where it has learnt from other values of masks, or depths of images."""
        if not self._bare:
            values = f"--mask-values {values_text(self.spec.mask_values)}"
            hint = f"{values}   where the masks are of its classes"
            self._require(spec, ("mask_values",), hint)
            self._require(spec, ("bit_depth",), "the --bit-depth that the teacher had")

    def _require(self, own: ModelSpec | TrainOptions, names: tuple[str, ...], hint: str) -> None:
        pairs = {name: (getattr(self.spec, name), getattr(own, name)) for name in names}
        differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differ:
            raise UserError(
                f"{self._path} cannot teach this network: it has learnt something else",
                seen=", ".join(f"{name} {seen}" for name, (seen, _) in differ.items()),
                expected=", ".join(f"{name} {wanted}" for name, (_, wanted) in differ.items()),
                hint=hint,
            )


def imitation_loss(logits: Tensor, taught: Tensor, truth: Tensor, ranks: Ranks) -> Tensor:
    """How far the classes' shares are from the teacher's, a scalar, in fp32 at least; 0 if equal.

    logits, taught (N, classes, h, w); of truth (N, H, W) only NO_CLASS is read: those pixels do not
    count, nor do those where the teacher's answer is not finite. The Kullback-Leibler divergence, a
    mean over the pixels, plus a Dice loss for shares, 1 - 2 Σ min(p, q) / Σ (p + q) (Wang et al.
    2023, "Dice Semimetric Losses"), a mean over the classes above 0 that the teacher sees in the
    batch. Sums go over the batches of all ranks.
    """
    answered = taught.isfinite().all(1, keepdim=True)
    counted = _counted_at(truth, (logits.shape[2], logits.shape[3]))[:, None] & answered
    logs, aims = _log_shares(logits), _log_shares(torch.where(answered, taught, 0))
    shares, aim = logs.exp() * counted, aims.exp() * counted
    divergence = (aim * (aims - logs)).sum()
    pixels = ranks.total(torch.stack([divergence, counted.sum().to(divergence.dtype)]))
    parts = (torch.minimum(shares, aim), shares, aim, aim == aim.amax(1, keepdim=True))
    sums = ranks.total(torch.stack([(part * counted).sum((0, 2, 3)) for part in parts]))
    return pixels[0] / pixels[1].clamp(min=1) + 1 - mean_dice(sums[:3, 1:], sums[3, 1:] > 0)


def _log_shares(logits: Tensor) -> Tensor:
    """Two classes of one logit."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], 1)
    return logits.log_softmax(1)


def _counted_at(truth: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) bool: where the nearest pixel of the truth (N, H, W) counts."""
    counted = truth != NO_CLASS
    if counted.shape[1:] == size:
        return counted
    nearest = F.interpolate(counted[:, None].float(), size=size, mode="nearest-exact")
    return nearest[:, 0].bool()
