"""The baseline: PyTorch as Pytorch-UNet's predict.py uses it, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..contract.files import ARRAY
from ..contract.headers import decoding
from ..contract.images import read_image
from ..contract.masks import mask_pixels
from ..contract.resize import resize_image
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size
from ..training.checkpoint import Checkpoint, unet_from_checkpoint


class ReferenceLoop:
    """Eager fp32, batch of one, logits to the host, resized to the image's size there.

    bit_depth: of the data in 16-bit images. sizes: of all images that it has loaded.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, bit_depth: int | None = None) -> None:
        self.spec: ModelSpec = checkpoint.spec
        self.device, self.bit_depth = device, checkpoint.spec.depth(bit_depth)
        self.sizes: set[Size] = set()
        self.net = unet_from_checkpoint(checkpoint).to(device)

    def load(self, path: Path) -> tuple[Tensor, Size]:
        """Decode with Pillow, resize, divide: float (1, C, h, w) and the image's size.

        Raises ImageError for a file that Pillow cannot read.
        """
        image = self._decode(path)
        height, width = image.shape[:2]
        self.sizes.add((height, width))
        image = image.reshape(height, width, self.spec.channels)
        small = resize_image(image, self.spec.input_size((height, width)), self.spec.resize)
        planes = np.array(small.transpose(2, 0, 1), order="C")
        return torch.from_numpy(planes)[None].float() / 255, (height, width)

    def _decode(self, path: Path) -> U8:
        """By Pillow, but for what it cannot read, or would clip at 255."""
        if self.spec.channels not in (1, 3) or path.suffix.lower() == ARRAY:
            return read_image(path, self.spec.channels, bit_depth=self.bit_depth)
        with decoding(str(path)), Image.open(path) as file:
            if self.bit_depth is None and not file.mode.startswith(("I", "F")):
                upright = ImageOps.exif_transpose(file)
                return np.asarray(upright.convert("L" if self.spec.channels == 1 else "RGB"))
        return read_image(path, self.spec.channels, bit_depth=self.bit_depth)

    def infer(self, image: Tensor, size: Size) -> U8:
        """Class indices (H, W)."""
        with torch.no_grad():
            logits = self.run_network(image.to(self.device)).cpu()
            logits = F.interpolate(logits, size, mode="bilinear")
            if self.spec.classes > 1:
                mask = logits.argmax(1)
            else:
                mask = torch.sigmoid(logits)[:, 0] > self.spec.threshold
        return mask[0].to(torch.uint8).numpy()

    def run_network(self, image: Tensor) -> Tensor:
        """Logits of an image that lies on the device; they stay there."""
        with torch.no_grad():
            logits: Tensor = self.net(image)
            return logits

    def predict(self, paths: Sequence[Path], outputs: Sequence[Path]) -> None:
        """Files to files, as the reference saves them: Pillow's PNG."""
        for path, output in zip(paths, outputs, strict=True):
            mask = self.infer(*self.load(path))
            if self.spec.mask_values == (0, 1):
                Image.fromarray(mask.astype(bool)).save(output)
            else:
                Image.fromarray(mask_pixels(mask, self.spec)).save(output)
