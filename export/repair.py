"""FP16 repair: the blocks of a network that must stay in fp32 for its masks to stay right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.log import log
from ..engine.base import Engine
from ..engine.torch_backend import TorchEngine
from ..training.checkpoint import Checkpoint
from .gate import GateCase, GateOptions, GateResult, judge_engine
from .onnx_export import BLOCKS, folded_masknet, rounded_masknet
from .overflow import FP16_MAX

Cases = Callable[[], Iterable[GateCase]]
Passes = Callable[[tuple[str, ...]], bool]


def find_fp32_blocks(
    checkpoint: Checkpoint,
    reference: Engine,
    cases: Cases,
    options: GateOptions,
    must: tuple[str, ...],
) -> tuple[str, ...]:
    """Those of BLOCKS without which the rounded fp16 network fails the gate on `cases`.

    must: blocks that see a number beyond 65504 and stay, as overflowing_blocks finds them. Where
    they are not enough, others are dropped from all by halves, quarters and so on. () when fp32
    blocks would not help.
    """

    def passes(blocks: tuple[str, ...]) -> bool:
        return not _judged(checkpoint, reference, cases, options, blocks).failures

    if passes(must):
        return must
    if not passes(BLOCKS):
        return ()
    return smallest_blocks(must, passes)


def one_block_more(
    checkpoint: Checkpoint,
    reference: Engine,
    cases: Cases,
    options: GateOptions,
    blocks: tuple[str, ...],
) -> tuple[str, ...]:
    """`blocks` and the one that brings the rounded network nearest; () where they are all.

    An engine rounds in another order than the network that `blocks` were found with.
    """
    judged = partial(_judged, checkpoint, reference, cases, options)
    wider = [_in_order({*blocks, name}) for name in BLOCKS if name not in blocks]
    return max(wider, key=lambda names: judged(names).agreement, default=())


def smallest_blocks(must: tuple[str, ...], passes: Passes) -> tuple[str, ...]:
    """No block of the result but `must` can be left out; all BLOCKS together pass."""
    kept = [name for name in BLOCKS if name not in must]
    chunk = max(1, len(kept) // 2)
    while kept:
        shorter = _without_a_chunk(kept, chunk, must, passes)
        if shorter is not None:
            kept = shorter
        elif chunk == 1:
            break
        chunk = max(1, min(chunk // 2 if shorter is None else chunk, len(kept)))
    return _in_order({*must, *kept})


def _without_a_chunk(
    kept: list[str], chunk: int, must: tuple[str, ...], passes: Passes
) -> list[str] | None:
    for start in range(0, len(kept), chunk):
        rest = kept[:start] + kept[start + chunk :]
        if passes(_in_order({*must, *rest})):
            return rest
    return None


def _in_order(names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in BLOCKS if name in names)


def _judged(
    checkpoint: Checkpoint,
    reference: Engine,
    cases: Cases,
    options: GateOptions,
    blocks: tuple[str, ...],
) -> GateResult:
    asked = replace(  # the rounded network calls itself fp32
        options,
        min_agreement=options.agreement_bound("fp16"),
        min_class_iou=options.class_bound("fp16"),
    )
    net = rounded_masknet(checkpoint, blocks)
    with TorchEngine(checkpoint, "cpu", net) as engine:
        result = judge_engine(reference, engine, cases(), inputs="repair", options=asked)
    log.info("fp32 in %s: %s", ", ".join(blocks) or "no block", result.failures or "passes")
    return result


def overflowing_blocks(checkpoint: Checkpoint, cases: Iterable[GateCase]) -> tuple[str, ...]:
    """Blocks in which a convolution takes or gives a number that fp16 does not hold."""
    net = folded_masknet(checkpoint)
    found: set[str] = set()
    for name in BLOCKS:
        for module in getattr(net.net, name).modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(partial(_note_overflow, found, name))
                if float(module.weight.detach().abs().max()) > FP16_MAX:
                    found.add(name)
    with torch.inference_mode():
        for case in cases:
            net.logits(torch.tensor(case.image)[None])  # copied: what it is of is read-only
    return _in_order(found)


def _note_overflow(
    found: set[str], name: str, module: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    if max(float(inputs[0].abs().max()), float(output.abs().max())) > FP16_MAX:
        found.add(name)
