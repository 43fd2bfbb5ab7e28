"""Exported graphs, one a session for each kind; changed weights; a net that was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import once
from unetrt.export import modelfile
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.synthetic import write_dataset
from unetrt.training.train import train

Arrays = Callable[[Any], Any]


@pytest.fixture(scope="session")
def reweighted() -> Callable[[Path, Path, str, Arrays], Path]:
    """Write an ONNX file again with one initializer changed: (from, to, name, change)."""

    def write(source: Path, target: Path, name: str, change: Arrays) -> Path:
        model = onnx.load(str(source))
        found = next(i for i in model.graph.initializer if i.name == name)
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), name))
        target.write_bytes(model.SerializeToString())
        return target

    return write


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 8 images and masks of 64×80."""
    return write_dataset(tmp_path_factory.mktemp("pictures"), 8, (64, 80), seed=3)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a small net that has learned the drawn pictures."""
    return once(tmp_path_factory, "trained", _train) / "run" / "best.pth"


def _train(folder: Path) -> None:
    images, masks = write_dataset(folder / "data", 40, (96, 96), seed=5)
    recipe = replace(RECIPES["modern"], epochs=40, batch_size=4, learning_rate=1e-2)
    options = TrainOptions(
        images=images,
        masks=masks,
        channels=1,
        classes=4,
        width=4,
        scale=1.0,
        device="cpu",
        recipe=recipe,
        out=folder / "run",
    )
    train(options)


@pytest.fixture
def sabotage(
    monkeypatch: pytest.MonkeyPatch, reweighted: Callable[..., Path]
) -> Callable[[Callable[[Any], Any]], None]:
    """Every graph written from now on has changed weights in its last layer."""
    write = modelfile._write_floats

    def install(change: Callable[[Any], Any] = np.negative) -> None:
        def write_changed(path: Path, *rest: Any) -> None:
            write(path, *rest)
            reweighted(path, path, "net.outc.conv.weight", change)

        monkeypatch.setattr(modelfile, "_write_floats", write_changed)

    return install
