"""The client of docs/ without a server: a mask of its own for every image of a tree."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.masks import read_mask
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8, Size

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "docs" / "triton_client.py"


@pytest.fixture
def client() -> Any:
    pytest.importorskip("tritonclient.grpc")
    spec = importlib.util.spec_from_file_location("triton_client", CLIENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """Its masks are the images' first pixel."""

    def __init__(self, url: str, model: str) -> None:
        self.spec = ModelSpec(channels=1, classes=4, scale=1.0)

    def submit(self, image: U8, size: Size) -> Future[U8]:
        future: Future[U8] = Future()
        future.set_result(np.full(size, image[0, 0, 0], np.uint8))
        return future

    def close(self) -> None:
        pass


def test_no_two_images_share_a_mask(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steel: Callable[..., U8]
) -> None:
    names = ["a.png", "a.bmp", "left/a.png", "right/a.png"]
    for value, name in enumerate(names):
        path = tmp_path / "imgs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24), value, np.uint8)).save(path)
    monkeypatch.setattr(client, "MaskClient", Server)
    folders = ["-i", str(tmp_path / "imgs"), "--output-dir", str(tmp_path / "masks")]
    monkeypatch.setattr(sys, "argv", ["triton_client.py", "steel", *folders])
    assert client.main() == 0
    written = sorted(path for path in (tmp_path / "masks").rglob("*.png"))
    assert {str(path.relative_to(tmp_path / "masks")) for path in written} == {
        *("a.png", "a.png.png", "left/a.png", "right/a.png")
    }
    assert sorted(int(read_mask(path)[0, 0]) for path in written) == [0, 1, 2, 3]
