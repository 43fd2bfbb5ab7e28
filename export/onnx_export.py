"""Checkpoint → one self-contained ONNX file of the fused graph."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..contract.errors import UserError, as_word
from ..contract.files import atomic_path, require_place, sha256_from_file
from ..contract.log import log
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.types import NO_CLASS, U8, Size
from ..engine.onnxfile import PRECISION_KEY, SOURCE_KEY, SPEC_KEY, read_onnx
from ..engine.onnxruntime_backend import CPU, session_from_onnx
from ..training.checkpoint import Checkpoint, read_checkpoint, unet_from_checkpoint
from ..training.masknet import MaskNet
from .bfloat16 import rounding_from_bf16
from .fold import fold_batchnorm

Precision = Literal["fp32", "fp16", "bf16"]

OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22}
"""The convolutions of ONNX take bf16 from opset 22 on."""
BLOCKS = ("inc", "down1", "down2", "down3", "down4", "up1", "up2", "up3", "up4", "outc")
"""The parts of a network, each of which can stay in fp32 in an fp16 graph."""
INPUTS = ("image", "size_like")
DYNAMIC = ({0: "N", 1: "h", 2: "w"}, {0: "H", 1: "W"})
CHECK_SIZE: Size = (33, 21)
"""Odd and with a side near MIN_SIDE, so that the padding paths run in the check."""


def onnx_from_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    precision: Precision = "fp32",
    source: str = "",
    fp32_blocks: Sequence[str] = (),
) -> None:
    """Write the fused graph with weights and spec inside, checked and run, whole or not at all.

    image: uint8 (N, h, w, C); size_like: uint8 (H, W), only its shape is read;
    mask: uint8 (N, H, W), or prob: uint8 (N, classes, H, W), as the spec's result says.
    source: SHA-256 of the checkpoint file. fp32_blocks: those of BLOCKS that stay in fp32 in an
    fp16 graph, with casts around them.
    Raises UserError when the file does not give the network's masks in ONNX Runtime.
    """
    tempfile.gettempdir()  # the exporter asks for it too, and where there is none ends in a page
    net = folded_masknet(checkpoint, precision, fp32_blocks)
    with atomic_path(path) as temporary:
        _export(net, temporary, OPSETS[precision])
        _finish(temporary, checkpoint.spec, precision, source)
        _check_by_running(net, temporary, path, precision)


def export_checkpoint(
    checkpoint: Path, path: Path, precision: Precision, overrides: SpecOverrides
) -> ModelSpec:
    """Read a checkpoint file and write it as ONNX; return its spec."""
    require_place(path, "model.onnx")
    if path.suffix.lower() != ".onnx":
        raise UserError(
            f"an ONNX file ends in .onnx, {path.name} does not",
            seen=path,
            expected="a name that does",
            hint=f"-o {as_word(path.with_name(f'{path.name}.onnx'))}",
        )
    content = read_checkpoint(checkpoint).with_overrides(overrides)
    onnx_from_checkpoint(content, path, precision, sha256_from_file(checkpoint))
    return content.spec


def folded_masknet(
    checkpoint: Checkpoint, precision: Precision = "fp32", fp32_blocks: Sequence[str] = ()
) -> MaskNet:
    """The network that is exported, in evaluation mode."""
    net = MaskNet(fold_batchnorm(unet_from_checkpoint(checkpoint)), checkpoint.spec).eval()
    if precision == "fp16":
        for name in BLOCKS:
            block = getattr(net.net, name)
            block.to(torch.float32 if name in fp32_blocks else torch.float16)
            if fp32_blocks:
                block.register_forward_pre_hook(_cast_inputs)
    elif precision == "bf16":
        _round_to_bf16(net.net)
    return net


def _round_to_bf16(net: nn.Module) -> None:
    """All but what bf16 spoils, whose weights stay as they are.

    Of logits its 8 bits make ties, and TensorRT-RTX 1.7 has no type for a transposed convolution.
    """
    last = net.get_submodule(BLOCKS[-1])
    last.register_forward_pre_hook(_cast_inputs)
    logits = set(last.modules())
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d):
            module.register_forward_pre_hook(_cast_inputs)
            module.register_forward_hook(lambda _module, _inputs, out: out.to(torch.bfloat16))
        elif isinstance(module, nn.Conv2d) and module not in logits:
            module.to(torch.bfloat16)


def _cast_inputs(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A block takes what the one before it gives in the other precision."""
    dtype = next(block.parameters()).dtype
    return tuple(tensor.to(dtype) for tensor in inputs)


def rounded_masknet(checkpoint: Checkpoint, fp32_blocks: Sequence[str] = ()) -> MaskNet:
    """The fp16 network in fp32 arithmetic: what each layer takes and gives is rounded to fp16.

    ONNX Runtime and OpenVINO run fp16 graphs on a CPU in fp32 throughout: an activation beyond
    65504 is infinite on a GPU and here, not there. PyTorch's own fp16 is ten times as slow.
    """
    net = folded_masknet(checkpoint, "fp16", fp32_blocks).float()
    for name in BLOCKS:
        if name not in fp32_blocks:
            _round_convolutions(getattr(net.net, name))
    return net


def _round_convolutions(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].half().float(),))
            module.register_forward_hook(lambda _module, _inputs, output: output.half().float())


def _export(net: MaskNet, path: Path, opset: int) -> None:
    # A batch of 1 would become a constant: the exporter takes it for "always one".
    image = torch.zeros(2, 48, 40, net.spec.channels, dtype=torch.uint8)
    size_like = torch.zeros(96, 80, dtype=torch.uint8)
    with _quiet_exporter(), interrupts():
        program = torch.onnx.export(
            net,
            (image, size_like),
            dynamo=True,
            external_data=False,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=[net.spec.result],
            dynamic_shapes=DYNAMIC,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)


@contextmanager
def interrupts() -> Iterator[None]:
    """Ctrl-C stays one: the exporter takes it for a failure of its own and tells of that."""
    try:
        yield
    except Exception as error:
        if _interrupted(error):
            raise KeyboardInterrupt from None
        raise


def _interrupted(error: BaseException) -> bool:
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if isinstance(found, KeyboardInterrupt):
            return True
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            waiting += [found.__cause__, found.__context__]
    return False


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """It warns of packages that it does not need and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(path: Path, spec: ModelSpec, precision: str, source: str) -> None:
    """Name the producer, put the spec in, and let ONNX's own checker read the result."""
    import onnx

    model = onnx.load(str(path))
    model.producer_name = "unetrt"
    entries = {SPEC_KEY: spec.to_json(), PRECISION_KEY: precision, SOURCE_KEY: source}
    onnx.helper.set_model_props(model, entries)
    for node in model.graph.node:  # the exporter's stack traces name files of this machine
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _check_by_running(net: MaskNet, path: Path, target: Path, precision: Precision) -> None:
    images = _check_images(net.spec.channels)
    size = (2 * CHECK_SIZE[0], 2 * CHECK_SIZE[1])
    found = _run(path, images, size, precision)
    with torch.inference_mode():
        like = torch.empty(size, dtype=torch.uint8)
        expected = net(torch.from_numpy(images), like).numpy()
    finite = _finite(expected, net.spec)
    if not finite.all():
        log.warning("%s: the network overflows in this precision", target)
    # ONNX Runtime computes fp16 in fp32 on a CPU: where PyTorch overflows it need not.
    # A probability between two levels is rounded up by the one and down by the other.
    levels = 0 if net.spec.result == "mask" else 1
    alike = np.abs(found.astype(int) - expected) <= levels
    equal = float(np.mean(alike[finite])) if finite.any() else 1.0
    # Untrained nets have thin margins, in fp16 above all: this is a check of the graph, and
    # the gate's numbers are those to rely on.
    if found.shape != expected.shape or equal < 0.9:
        raise UserError(
            f"the ONNX graph written to {target} does not give the network's masks",
            seen=f"{equal:.2%} of the pixels equal, shape {found.shape}",
            expected=f"the masks of PyTorch, shape {expected.shape}",
        )


def _finite(found: U8, spec: ModelSpec) -> Any:
    """Where a result (N, H, W) or (N, planes, H, W) says something, in its own shape.

    A probability of 1 is the same number: no pixel is of every class.
    """
    nothing = found == NO_CLASS
    if spec.planes:
        nothing = np.broadcast_to(nothing.all(axis=1, keepdims=True), found.shape)
    return ~nothing


def _check_images(channels: int) -> U8:
    """Two smooth pictures (2, h, w, C), the same on every call."""
    generator = np.random.default_rng(0)
    waves = generator.uniform(0.1, 0.5, (2, 2, channels))
    y, x = np.indices(CHECK_SIZE)[..., None]
    picture = [127 * (1 + np.sin(y * w[0] + x * w[1])) for w in waves]
    return np.stack(picture).astype(np.uint8)


def _run(path: Path, images: U8, size: Size, precision: Precision) -> Any:
    feeds = {"image": images, "size_like": np.zeros(size, np.uint8)}
    model: Path | bytes = path
    if precision == "bf16":
        model = rounding_from_bf16(read_onnx(path)).SerializeToString()
    return session_from_onnx(model, CPU).run(None, feeds)[0]
