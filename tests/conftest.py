"""What several test folders share: small networks, pictures, and the folder of real data."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.export import onnx_export
from unetrt.export.onnx_export import Precision, onnx_from_checkpoint
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetrt.training.masknet import MaskNet
from unetrt.training.synthetic import draw_pair
from unetrt.training.unet import UNet

ROOT = Path(__file__).resolve().parent.parent

# Processes that tests start find the package without an install.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT / "typings"), os.environ.get("PYTHONPATH", "")])
)

# Tests that import it by themselves would report to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Of processes that tests start, as `one_thread` for this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them, and what they start, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # the same under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a GPU runs where it is asked for, in one process: some of it measures memory."""
    if "gpu" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("by itself alone: make gpu, or pytest -m gpu"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that UNETRT_TEST_DATA names: neu_seg, camvid and em_membrane."""
    name = os.environ.get("UNETRT_TEST_DATA")
    if not name:
        pytest.skip("UNETRT_TEST_DATA is not set: no real images and masks to test on")
    if not Path(name).is_dir():
        pytest.skip(f"UNETRT_TEST_DATA names {name}, which is no folder")
    return Path(name).resolve()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def steel(index: int, height: int, width: int, channels: int = 1) -> U8:
    """A drawn picture (H, W, C), the same on every call."""
    grey, _ = draw_pair(index, (height, width), seed=7)
    return np.repeat(grey[..., None], channels, axis=2)


@pytest.fixture(name="steel", scope="session")
def steel_fixture() -> Callable[..., U8]:
    return steel


def balanced_checkpoint(
    channels: int = 1, classes: int = 4, width: int = 4, bilinear: bool = False, scale: float = 1.0
) -> Checkpoint:
    """An untrained network whose masks hold every class: its logits are centred on a picture."""
    torch.manual_seed(channels * 100 + classes * 10 + width)
    spec = ModelSpec(
        channels=channels, classes=classes, width=width, bilinear=bilinear, scale=scale
    )
    net = UNet(channels, classes, width, bilinear)
    pictures = torch.from_numpy(np.stack([steel(i, 64, 64, channels) for i in range(4)]))
    masknet = MaskNet(net, spec)
    with torch.no_grad():
        for _ in range(20):
            masknet.train().logits(pictures)  # gives BatchNorm the statistics of real pictures
        logits = masknet.eval().logits(pictures)
        net.outc.conv.bias -= logits.mean((0, 2, 3))  # type: ignore[operator, misc]
    return Checkpoint(spec, net.eval().state_dict())


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write balanced_checkpoint(…) to a file, once for each set of arguments."""
    folder = tmp_path_factory.mktemp("checkpoints")
    written: dict[str, Path] = {}

    def write(**arguments: object) -> Path:
        key = "-".join(f"{k}{v}" for k, v in sorted(arguments.items())) or "default"
        if key not in written:
            written[key] = folder / f"{key}.pth"
            write_checkpoint(written[key], balanced_checkpoint(**arguments))  # type: ignore[arg-type]
        return written[key]

    return write


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """What `make` writes to the path that it is given, by the first process of a run that asks."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    made, part = folder / name, folder / f"part-{name}"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            make(part)
            part.rename(made)
    return made


def with_weights(graph: Path, state: dict[str, Tensor]) -> bytes:
    """An exported graph with other weights, every one of them."""
    model = onnx.load(graph)
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    for held in model.graph.initializer:
        tensor = floats.pop(held.name, None)
        if tensor is not None:
            raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            assert (len(held.raw_data), tuple(held.dims)) == (len(raw), tuple(tensor.shape))
            held.raw_data = raw
    assert not floats, f"{sorted(floats)} are held by other names"
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session", autouse=True)
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """PyTorch's exporter takes ten seconds: what it makes of a network serves all tests of a run.

    So for networks that differ in nothing but their weights, which the graph holds by their names.
    Its file is finished, checked and run anew each time. Gives the exporter itself.
    """
    original = onnx_export._export

    def export(net: MaskNet, path: Path, opset: int) -> None:
        state, spec = net.state_dict(), net.spec
        kinds = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
        traced = (spec.classes, spec.bilinear, spec.threshold, spec.result, opset)
        key = hashlib.sha256(repr((kinds, traced)).encode()).hexdigest()
        made = once(tmp_path_factory, f"{key}.onnx", lambda target: original(net, target, opset))
        path.write_bytes(with_weights(made, state))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_export", export)
        yield original


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Callable[..., Path]
) -> Callable[..., Path]:
    """checkpoint_file(…) as ONNX; an export takes seconds, so each kind is made once."""
    folder = tmp_path_factory.mktemp("exported")

    def export(precision: Precision = "fp32", **arguments: object) -> Path:
        checkpoint = checkpoint_file(**arguments)
        path = folder / f"{checkpoint.stem}-{precision}.onnx"
        if not path.exists():
            onnx_from_checkpoint(read_checkpoint(checkpoint), path, precision)
        return path

    return export
