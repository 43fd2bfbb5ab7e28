"""The strongest PyTorch that we can make: what an engine has to beat beside the plain loop."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract.errors import UserError
from ..engine.torch_backend import TorchEngine
from ..export.fold import fold_batchnorm
from ..training.checkpoint import Checkpoint, unet_from_checkpoint
from ..training.masknet import MaskNet
from ..training.step import cpu_computes_bf16
from .machine import wants_cuda


@dataclass(frozen=True)
class Variant:
    """A way to run the checkpoint in PyTorch, in bf16 on a CPU, in fp16 on CUDA."""

    compiled: bool
    what: str


VARIANTS = {
    "torch-half": Variant(False, "eager channels_last"),
    "torch-compile": Variant(True, "torch.compile max-autotune, BatchNorm folded,"),
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Fp32LogitsNet(MaskNet):
    """The network in its own precision, the logits resized and compared in fp32.

    They cost little there, and bfloat16 logits tie where fp32 ones do not.
    """

    def logits(self, image: Tensor) -> Tensor:
        return super().logits(image).float()


class VariantEngine(TorchEngine):
    """TorchEngine with the network of a variant. Raises UserError where it cannot run."""

    def __init__(self, checkpoint: Checkpoint, name: str, device: str) -> None:
        self.variant = VARIANTS[name]
        unet = unet_from_checkpoint(checkpoint)
        if self.variant.compiled:
            require_compiler()
            unet = fold_batchnorm(unet)
        on_gpu = wants_cuda(device)
        precision = "fp16" if on_gpu else half_precision_on_cpu()
        net = Fp32LogitsNet(unet, checkpoint.spec).to(DTYPES[precision])
        super().__init__(checkpoint, device, net)
        self.precision = precision
        if self.variant.compiled:
            if on_gpu:
                self.slots = 1  # its CUDA graph has one input and one output, whatever the stream
            net.compile(dynamic=False, options=_compile_options(on_gpu))

    @property
    def label(self) -> str:
        return f"PyTorch {self.variant.what} {self.precision} on {self.device}"


def half_precision_on_cpu() -> str:
    """bf16 where the processor multiplies in it; elsewhere it would be slower than fp32."""
    return "bf16" if cpu_computes_bf16() else "fp32"


def require_compiler() -> None:
    """Raise UserError where PyTorch's inductor would find no C++ compiler."""
    wanted = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(name and shutil.which(name) for name in wanted):
        raise UserError("torch.compile needs a C++ compiler", seen="no g++ and no clang++")


def _compile_options(on_gpu: bool) -> dict[str, str | int | bool | object]:
    """max-autotune; on a CPU with the weights packed once for its convolutions, too.

    On a GPU convolutions are cuDNN's: its were the fastest in each of 14 shapes on an H100, and to
    time Triton's beside them took two minutes.
    """
    if on_gpu:
        options = torch._inductor.list_mode_options("max-autotune")
        return {**options, "max_autotune_conv_backends": "ATEN"}
    return {"max_autotune": True, "freezing": True}
