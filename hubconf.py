"""torch.hub: the U-Net, and the published Carvana weights of milesial/Pytorch-UNet."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from unetrt.training.checkpoint import Checkpoint
    from unetrt.training.unet import UNet

dependencies = ["torch", "numpy"]

RELEASE = "https://github.com/milesial/Pytorch-UNet/releases/download/v3.0"
CARVANA = {
    0.5: f"{RELEASE}/unet_carvana_scale0.5_epoch2.pth",
    1.0: f"{RELEASE}/unet_carvana_scale1.0_epoch2.pth",
}


def unet(channels: int = 3, classes: int = 2, width: int = 64, bilinear: bool = False) -> UNet:
    """Give an untrained U-Net: (N, channels, h, w) float of 0 to 1 → (N, classes, h, w) logits."""
    _find_package()
    from unetrt.training.unet import UNet

    return _described(UNet(channels, classes, width, bilinear), channels, classes, bilinear)


def _described(net: UNet, channels: int, classes: int, bilinear: bool) -> UNet:
    """Give it the attributes that code written for milesial's network reads."""
    net.n_channels, net.n_classes, net.bilinear = channels, classes, bilinear  # type: ignore[assignment]
    return net


def unet_carvana(
    pretrained: bool = False, scale: float = 0.5, *, progress: bool = True, url: str | None = None
) -> UNet:
    """Give the U-Net for cars (3 channels, 2 classes), for images resized by `scale`.

    pretrained: with the published weights for that scale (0.5 or 1.0), in evaluation mode.
    url: another place of that file. No source states its SHA-256: that of the first file that was
    read is kept beside it, and later ones are checked against it. UserError where it has changed.
    """
    if not pretrained:
        return unet(3, 2, 64, bilinear=False)
    if scale not in CARVANA:
        raise ValueError(f"scale {scale}: there are weights for {' and '.join(map(str, CARVANA))}")
    _find_package()
    from unetrt.training.checkpoint import unet_from_checkpoint

    checkpoint = _downloaded(url or CARVANA[scale], progress)
    spec = checkpoint.spec
    net = unet_from_checkpoint(checkpoint)
    return _described(net, spec.channels, spec.classes, spec.bilinear)


def _find_package() -> None:
    """Make the folders beside this file the package, unless an install says that they are.

    One that is installed from elsewhere is passed over, one that is imported already is kept.
    The links in typings/ would not do: an archive from GitHub unpacks without links.
    """
    if "unetrt" in sys.modules:
        return
    here = Path(__file__).resolve().parent
    with suppress(ModuleNotFoundError):
        found = find_spec("unetrt.training")
        if found and found.origin and Path(found.origin).resolve().parent == here / "training":
            return
        sys.modules.pop("unetrt", None)  # the search has imported it
    spec = ModuleSpec("unetrt", None, is_package=True)
    spec.submodule_search_locations = [str(here)]
    sys.modules["unetrt"] = module_from_spec(spec)


def _downloaded(url: str, progress: bool) -> Checkpoint:
    """Read the file, fetched unless it is there; its digest is kept once it has been read.

    What was fetched and is no checkpoint, as an error page, is not left to be found next time.
    """
    from unetrt.contract.errors import UserError
    from unetrt.contract.files import sha256_from_file, write_atomically
    from unetrt.training.checkpoint import read_checkpoint

    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    recorded = path.with_name(path.name + ".sha256")
    path.parent.mkdir(parents=True, exist_ok=True)
    fetched = not path.exists()
    if fetched:
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    digest = sha256_from_file(path)
    if recorded.exists() and recorded.read_text().strip() != digest:
        raise UserError(
            f"{path} is not the file that was downloaded first",
            seen=digest,
            expected=recorded.read_text().strip(),
            hint=f"rm {path} {recorded}   if the change is known to be good",
        )
    try:
        checkpoint = read_checkpoint(path)
    except UserError:
        if fetched:
            path.unlink()
        raise
    if not recorded.exists():
        write_atomically(recorded, f"{digest}\n".encode())
    return checkpoint
