"""torch.hub with source="local": from the folder as it lies, installed or not."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.training.unet import UNet

ROOT = Path(__file__).resolve().parent.parent
NAME = "unet_carvana_scale0.5_epoch2.pth"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the published one's form: a state_dict with mask_values."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("release") / NAME
    torch.save({**UNet(3, 2, 64).state_dict(), "mask_values": [0, 1]}, path)
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def load(name: str, **arguments: Any) -> Any:
    return torch.hub.load(str(ROOT), name, source="local", **arguments)  # type: ignore[no-untyped-call]


def test_carvana_weights_are_loaded_and_their_digest_is_kept(published: Path, hub: Path) -> None:
    arguments = {"pretrained": True, "scale": 0.5, "progress": False, "url": published.as_uri()}
    net = load("unet_carvana", **arguments)
    expected = torch.load(published, weights_only=True)
    assert not net.training
    assert torch.equal(net.state_dict()["outc.conv.weight"], expected["outc.conv.weight"])
    assert {path.name for path in hub.iterdir()} == {NAME, f"{NAME}.sha256"}
    load("unet_carvana", **arguments)
    with (hub / NAME).open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    with pytest.raises(UserError, match="not the file that was downloaded first"):
        load("unet_carvana", **arguments)


def test_what_is_no_checkpoint_is_fetched_again(published: Path, hub: Path, tmp_path: Path) -> None:
    """An error page in its place: neither it nor its digest stays."""
    place = tmp_path / "served" / NAME
    place.parent.mkdir()
    place.write_text("<html>rate limit</html>")
    arguments = {"pretrained": True, "scale": 0.5, "progress": False, "url": place.as_uri()}
    with pytest.raises(UserError, match="not a checkpoint"):
        load("unet_carvana", **arguments)
    assert not list(hub.iterdir())
    place.write_bytes(published.read_bytes())
    net = load("unet_carvana", **arguments)
    assert (net.n_channels, net.n_classes, net.bilinear) == (3, 2, False)
    plain = load("unet", channels=1, classes=4, width=2, bilinear=True)
    assert (plain.n_channels, plain.n_classes, plain.bilinear) == (1, 4, True)


def test_scales_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5 and 1\.0"):
        load("unet_carvana", pretrained=True, scale=0.25)


def test_addresses_are_those_of_the_release() -> None:
    release = "https://github.com/milesial/Pytorch-UNet/releases/download/v3.0"
    assert runpy.run_path(str(ROOT / "hubconf.py"))["CARVANA"] == {
        0.5: f"{release}/unet_carvana_scale0.5_epoch2.pth",
        1.0: f"{release}/unet_carvana_scale1.0_epoch2.pth",
    }


LOADED = """
import importlib.util, os, sys, torch
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path[:] = [p for p in sys.path if "typings" not in p]
root = sys.argv[1]
for place in sys.argv[2:]:
    child = os.fork()  # each is a process that has imported PyTorch alone
    if child:
        assert os.waitpid(child, 0)[1] == 0, place
        continue
    sys.path += filter(None, [place])
    net = torch.hub.load(root, "unet", source="local", channels=1, classes=4, width=4)
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 4, 32, 32)
    spec = importlib.util.find_spec("unetrt")
    print(list(spec.submodule_search_locations)[-1])
    print(sys.modules["unetrt.training.unet"].__file__)
    sys.exit()
"""


def test_it_is_this_folder_that_is_loaded(tmp_path: Path) -> None:
    """Not what is installed from elsewhere; an install of this folder is taken as it is.

    Every other finder of the package is taken away first.
    """
    other = tmp_path / "unetrt" / "training"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    typings = ROOT / "typings"
    expected = {"": ROOT, str(tmp_path): ROOT, str(typings): typings / "unetrt"}
    command = [sys.executable, "-I", "-c", LOADED, str(ROOT), *expected]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    told = [Path(line) for line in done.stdout.splitlines()]
    assert told[::2] == list(expected.values())
    assert [file.resolve() for file in told[1::2]] == [ROOT / "training" / "unet.py"] * 3
