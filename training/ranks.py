"""Several processes that train one network: who each is, and what they add up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..contract.errors import UserError, first_line
from ..contract.progress import Advance, show_progress

Item = TypeVar("Item")

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What PyTorch reads of a process's place; torchrun, PyTorchJob and others set all of them."""


@dataclass(frozen=True)
class Ranks:
    """One process of `world`; rank 0 writes and speaks. Alone it is 0 of 1."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every item belongs to one process."""
        return list(items[self.rank :: self.world])

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes; gradients are summed on the way back."""
        return values if self.world == 1 else cast(Tensor, _Total.apply(values))  # type: ignore[no-untyped-call]

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one process at least says so, the same answer for all."""
        if self.world == 1:
            return flag
        count = torch.tensor(int(flag), device=device)
        dist.all_reduce(count)
        return bool(count)

    def of_first(self, item: Item) -> Item:
        """Give what the first process has to all of them."""
        items = [item]
        if self.world > 1:
            dist.broadcast_object_list(items)
        return items[0]

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.world > 1:
            dist.barrier()

    def wrapped(self, net: nn.Module) -> nn.Module:
        """Give the network whose backward pass averages the gradients over the processes."""
        return net if self.world == 1 else DistributedDataParallel(net)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


def _summed(values: Tensor) -> Tensor:
    total = values.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, for devices that PyTorch's lacks."""

    ranks = Ranks()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values, axes = x.to(torch.promote_types(x.dtype, torch.float32)), (0, 2, 3)
        count = self.ranks.total(values.new_tensor(values.numel() / values.shape[1]))
        mean = self.ranks.total(values.sum(axes)) / count
        centred = values - mean[:, None, None]
        variance = self.ranks.total((centred**2).sum(axes)) / count
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.track_running_stats:
            momentum = self.momentum or 0.0
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(variance, momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)


def sync_batchnorms(net: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Make every batch normalisation of `net` see the images of all processes."""
    if ranks.world == 1:
        return net
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(net))  # type: ignore[no-untyped-call]
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _all_reduced(child, ranks))
    return net


def _all_reduced(norm: nn.BatchNorm2d, ranks: Ranks) -> AllReduceBatchNorm2d:
    joined = AllReduceBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    joined.load_state_dict(norm.state_dict())
    joined.ranks = ranks
    return joined


@contextmanager
def joined_ranks(cuda: bool) -> Iterator[Ranks]:
    """Join the processes that torchrun, or another starter, has told of each other, if one did.

    Raises UserError where this process is told that there are others, and not where to meet them.
    """
    if not dist.is_available() or not _is_one_of_several():
        yield Ranks()
        return
    # Its functions have the process group of the moment of import as a default argument. Imported
    # later, by DistributedDataParallel, it would keep the group's threads past the interpreter's
    # end, where one that wants the GIL aborts the process.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        with loss_told():
            yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def loss_told() -> Iterator[None]:
    """Turn what PyTorch raises where another process is gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_loss(error):
            raise
        raise UserError(
            "another process of the run has ended, or is not reached",
            seen=first_line(error),
            expected="all of them, to the end: the error of that one says why",
        ) from error


def _tells_of_loss(error: RuntimeError) -> bool:
    """Gloo's errors have no class, but the name of its source file."""
    if not dist.is_available():
        return False
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _is_one_of_several() -> bool:
    if dist.is_torchelastic_launched():
        return True
    if processes() == 1 and is_main_process():
        return False
    lacking = [name for name in MEETING if not os.environ.get(name)]
    if lacking:
        # Alone, each of them would train on all images and write the same run.
        told = [f"{name}={os.environ[name]}" for name in MEETING if os.environ.get(name)]
        raise UserError(
            "this process is one of several, and is not told where they meet",
            seen=f"{' '.join(told)}, no {', '.join(lacking)}",
            expected=f"all of {', '.join(MEETING)}, or none",
            hint="torchrun --nproc-per-node N -m unetrt.cli train …   sets them",
        )
    return True


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks, before the processes are joined."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Give this process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    """Give the number of processes that train together, before they are joined."""
    return _number("WORLD_SIZE")


def processes_here() -> int:
    """Give the number of processes that torchrun started on this machine, at least one."""
    return _number("LOCAL_WORLD_SIZE")


def _number(name: str) -> int:
    """At least one."""
    text = os.environ.get(name, "")
    return max(1, int(text)) if text.isdecimal() else 1


def progress_of_first(
    what: str, total: int, unit: str = "images"
) -> AbstractContextManager[Advance]:
    """Show the first process's progress; the others' is the same, and is counted for nobody."""
    return show_progress(what, total, unit) if is_main_process() else nullcontext(_silent)


def _silent(count: int) -> None:
    """Count for nobody."""
