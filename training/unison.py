"""What processes exchange in a step, so that one that fails in it keeps none waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .ranks import Ranks

UNSETTLED = 2
"""DistributedDataParallel sorts its gradients after the first step and tells of it in the next."""

Call = tuple[Any, list[Any]]
"""An operation of c10d, and its arguments: of tensors blank ones on no device, and the device."""


class Unison:
    """Knows the operations of a step, which are the same in every process and every step.

    A process that ran out of memory in the middle of a step has left it where the others wait for
    its part of a sum. It gives them blank parts to the end; then all of them do the step again.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._several = ranks.world > 1
        self._calls: list[Call] | None = []
        self._first = 0
        self.learnt = not self._several

    def learn(self, step: Callable[[], object]) -> None:
        """Watch `step`, which every process takes at the same time on images of any size."""
        for _ in range(UNSETTLED):
            step()
        first = _operations()
        with _Watch() as watch:
            step()
        # A backend that numbers its operations otherwise: who fails cannot tell where it stands.
        told = _operations() - first == len(watch.calls)
        self._calls, self.learnt = watch.calls if told else None, True

    def begin(self) -> None:
        """Come to the first operation of a step."""
        self._first = _operations() if self._several else 0

    def finish(self) -> bool:
        """Take part in what is left of the step that began; whether that was possible."""
        if self._calls is None:
            return False
        done = _operations() - self._first if self._several else 0
        for operation, arguments in self._calls[done:]:
            found = operation(*(_filled(argument) for argument in arguments))
            work = found[-1] if isinstance(found, tuple) else found
            dist.Work.unbox(work).wait()
        return True


def _operations() -> int:
    """Those that this process has begun."""
    group: Any = dist.group.WORLD
    return int(group._get_sequence_number_for_group())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations between processes, those of C++ too, and lets them be."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d":
            self.calls.append((func, [_blank(argument) for argument in args]))
        return func(*args, **(kwargs or {}))


def _blank(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return torch.empty_like(argument, device="meta"), argument.device
    return [_blank(one) for one in argument] if isinstance(argument, list) else argument


def _filled(argument: Any) -> Any:
    if isinstance(argument, tuple):
        like, device = argument
        return torch.zeros_like(like, device=device)
    return [_filled(one) for one in argument] if isinstance(argument, list) else argument
