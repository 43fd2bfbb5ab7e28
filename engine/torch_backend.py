"""The checkpoint itself in PyTorch: the reference for agreement and the baseline for speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..contract.errors import UserError
from ..contract.modules import import_module, is_installed
from ..contract.spec import SpecOverrides
from ..contract.types import U8
from .base import Slot
from .cuda import BatchShape, CudaDevice, CudaSlot, DeviceView, Kernel
from .host import HostEngine

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoint
    from ..training.masknet import MaskNet


class TorchEngine(HostEngine):
    """The fused network in eager fp32, channels_last; `net` runs in place of the checkpoint's."""

    backend = "torch"
    precision = "fp32"

    def __init__(
        self, checkpoint: Checkpoint, device: str = "auto", net: MaskNet | None = None
    ) -> None:
        import torch

        from ..training.checkpoint import unet_from_checkpoint
        from ..training.masknet import MaskNet

        super().__init__(checkpoint.spec)
        self.device = _choose_device(device)
        if net is None:
            net = MaskNet(unet_from_checkpoint(checkpoint), checkpoint.spec)
        self._net = net.to(memory_format=torch.channels_last).to(self.device).eval()  # type: ignore[call-overload]
        self._cuda: CudaDevice | None = None
        if self.device.startswith("cuda") and is_installed("pycuda"):
            self._cuda = CudaDevice(int(self.device.partition(":")[2] or 0))

    def slot(self) -> Slot:
        """On CUDA with pycuda, copies overlap with the network; else they are part of it."""
        if self._cuda is None:
            return super().slot()
        return CudaSlot(self._cuda, self.spec.channels, TorchKernel(self._net))

    def close(self) -> None:
        super().close()
        if self._cuda is not None:
            self._cuda.close()

    def infer(self, images: U8, masks: U8) -> None:
        import torch

        with torch.inference_mode():
            image = torch.from_numpy(images).to(self.device)
            size_like = torch.empty(masks.shape[1:], dtype=torch.uint8, device=self.device)
            np.copyto(masks, self._net(image, size_like).cpu().numpy())


class TorchKernel(Kernel):
    """Queues a PyTorch network on a slot's stream, on the slot's own device memory."""

    def __init__(self, net: MaskNet) -> None:
        self._net = net

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        import torch

        external = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(external):
            images = torch.as_tensor(DeviceView(image, shape.images), device="cuda")
            like = torch.as_tensor(DeviceView(size_like, shape.mask_size), device="cuda")
            masks = torch.as_tensor(DeviceView(mask, shape.masks), device="cuda")
            masks.copy_(self._net(images, like))

    def close(self) -> None:
        """Own nothing: the network is the engine's."""


def torch_engine_from_checkpoint(path: Path, device: str, overrides: SpecOverrides) -> TorchEngine:
    """Raises UserError when torch is missing or `path` is not a checkpoint."""
    import_module("torch")
    from ..training.checkpoint import read_checkpoint

    return TorchEngine(read_checkpoint(path).with_overrides(overrides), device)


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"PyTorch cannot use {device}",
            seen=str(error).splitlines()[0],
            hint="unetrt doctor   says what this machine can run; or --device cpu",
        ) from error
    return device
