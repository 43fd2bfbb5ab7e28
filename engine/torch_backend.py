"""PyTorch: the checkpoint itself, reference and baseline; and engine directories, in fp16."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..contract.errors import DeviceMemoryError, UserError, first_line
from ..contract.log import log
from ..contract.memory import tells_of_memory
from ..contract.modules import import_module, is_installed
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.types import U8
from .base import Memory, Slot
from .cuda import BatchShape, CudaSlot, Kernel
from .cuda_buffers import DeviceView, PinnedMemory
from .cuda_device import CudaDevice, cuda_index, pycuda_lacks
from .cuda_graph import Replay
from .host import HostEngine
from .torch_graph import MOST_CAPTURES, capture_net, give_back

if TYPE_CHECKING:
    from ..training.checkpoint import Checkpoint
    from ..training.masknet import MaskNet

FUSED_BATCH = 8
"""As TensorRT's engines are built for unless asked otherwise."""


class NetEngine(HostEngine):
    """A network of PyTorch in channels_last, images → masks."""

    backend = "torch"

    def __init__(
        self, net: MaskNet, precision: str, device: str = "auto", threads: int | None = None
    ) -> None:
        """threads: see limit_threads."""
        import torch

        from ..training.threads import limit_threads

        limit_threads(threads)
        super().__init__(net.spec)
        self.precision, self.device = precision, _choose_device(device)
        self._net = net.to(memory_format=torch.channels_last).to(self.device).eval()  # type: ignore[call-overload]
        self._cuda: CudaDevice | None = None
        if not self.device.startswith("cuda"):
            from ..training.memory import PIXEL_BYTES

            self.pixel_bytes = PIXEL_BYTES * net.spec.width
            return
        # Slots' streams do not wait for the one that copied the weights.
        torch.cuda.synchronize(self.device)
        if _has_pycuda():
            self._cuda = CudaDevice(cuda_index(self.device))
            self.any_memory = False

    def slot(self) -> Slot:
        """On CUDA with pycuda, copies overlap with the network; else they are part of it."""
        if self._cuda is None:
            return super().slot()
        kernel = TorchKernel(self._net, self._cuda.index, bool(self.graphs))
        return CudaSlot(self._cuda, self.spec.channels, kernel, self.spec.planes, self.timed)

    def memory(self) -> Memory:
        return super().memory() if self._cuda is None else PinnedMemory(self._cuda)

    def close(self) -> None:
        super().close()
        if self._cuda is not None:
            give_back()
            self._cuda.close()

    def infer(self, images: U8, masks: U8) -> None:
        import torch

        with torch.inference_mode(), torch_errors(f"images {images.shape}, masks {masks.shape}"):
            image = torch.from_numpy(images).to(self.device)
            size_like = torch.empty(masks.shape[-2:], dtype=torch.uint8, device=self.device)
            np.copyto(masks, self._net(image, size_like).cpu().numpy())


class TorchEngine(NetEngine):
    """The checkpoint itself in eager fp32; `net` runs in its place.

    On CUDA with convolutions in TF32, as PyTorch is shipped and the reference's predict.py runs: on
    an H100 strict fp32 is several times slower. The gate's reference is on the CPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        net: MaskNet | None = None,
        threads: int | None = None,
    ) -> None:
        from ..training.checkpoint import unet_from_checkpoint
        from ..training.masknet import MaskNet

        if net is None:
            net = MaskNet(unet_from_checkpoint(checkpoint), checkpoint.spec)
        super().__init__(net, "fp32", device, threads)
        if rounds_to_tf32(self.device):
            self.precision = "tf32"


class FusedEngine(NetEngine):
    """The graph of an engine directory in PyTorch, in the precision of its weights.

    For a GPU: on a CPU PyTorch computes in fp16 several times slower than in fp32.
    """

    slots = 3

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        precision: str,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Raises UserError for a graph that is not of the spec's U-Net, and without torch."""
        import_module("torch")
        from ..training.masknet import MaskNet
        from .torch_fused import fused_unet_from_onnx

        net = MaskNet(fused_unet_from_onnx(model, spec), spec)
        super().__init__(net, precision, device, threads)
        self.path = model
        if self.device.startswith("cuda"):
            self.batch = FUSED_BATCH
            # Off until they have been seen: `bench` has a row with them.
            self.graphs = False if self._cuda is not None else None


class TorchKernel(Kernel):
    """Queues a PyTorch network on a slot's stream, on the slot's own device memory."""

    name = "PyTorch"
    eager = "PyTorch takes memory from its pool while the network runs, and gives it back"

    def __init__(self, net: MaskNet, index: int = 0, graphs: bool = False) -> None:
        """graphs: the network alone is captured, in memory of its own, and replayed."""
        self._net, self._device = net, f"cuda:{index}"
        refused = "" if graphs else "CUDA graphs are switched off"
        self._replay = Replay(refused, capture_net, MOST_CAPTURES)
        self._short = False

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        import torch

        device = self._device
        external = torch.cuda.ExternalStream(stream, device)  # type: ignore[no-untyped-call]
        where = f"images {shape.images}, masks {shape.masks}, stream {stream:#x}"
        with torch.inference_mode(), torch.cuda.stream(external), torch_errors(where):
            images = torch.as_tensor(DeviceView(image, shape.images), device=device)
            like = torch.as_tensor(DeviceView(size_like, shape.mask_size), device=device)
            masks = torch.as_tensor(DeviceView(mask, shape.masks), device=device)

            def work() -> None:
                masks.copy_(self._net(images, like))

            try:
                self._replay.run((shape, image, size_like, mask, stream), work, stream, where)
            except RuntimeError as error:
                self._short = self._short or tells_of_memory(error)
                raise

    def make_room(self) -> None:
        """A graph of other addresses is of no use any more."""
        self._replay.free()
        give_back()

    def close(self) -> None:
        """Leave PyTorch's pool to the slots that come next, but where memory was short.

        To give it back is to allocate all of it anew in the next pass. A graph's own memory no
        other takes.
        """
        self._replay.free()
        if self._short:
            give_back()


def rounds_to_tf32(device: str) -> bool:
    """Whether convolutions of fp32 round their inputs to 10 bits there, as PyTorch is set now.

    Not with NVIDIA_TF32_OVERRIDE=0, which NVIDIA's libraries heed.
    """
    import torch

    return (
        device.startswith("cuda")
        and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@contextmanager
def torch_errors(what: str) -> Iterator[None]:
    """Turn PyTorch's errors into a UserError; DeviceMemoryError is one.

    cuDNN, cuBLAS and the CPU's allocator raise a RuntimeError, as PyTorch's own do.
    """
    try:
        yield
    except RuntimeError as error:
        if tells_of_memory(error):
            text = f"PyTorch has no memory for {what}"
            raise DeviceMemoryError(text, seen=first_line(error)) from error
        raise UserError(f"PyTorch failed on the device: {what}", seen=first_line(error)) from error


def torch_engine_from_checkpoint(
    path: Path, device: str, overrides: SpecOverrides, threads: int | None = None
) -> TorchEngine:
    """Raises UserError when torch is missing or `path` is not a checkpoint."""
    import_module("torch")
    from ..training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(path).with_overrides(overrides)
    return TorchEngine(checkpoint, device, threads=threads)


@cache
def _has_pycuda() -> bool:
    """Without it PyTorch runs on the GPU all the same, its copies in turn with the network."""
    if not is_installed("pycuda"):
        return False
    why = pycuda_lacks()
    if why:
        log.warning("%s: copies to and from the GPU do not overlap with the network", why)
    return not why


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"PyTorch cannot use {device}",
            seen=first_line(error),
            hint="unetrt doctor   says what this machine can run; or --device cpu, --devices cpu:N",
        ) from error
    return device
