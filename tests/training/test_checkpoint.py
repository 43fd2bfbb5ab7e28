from __future__ import annotations

import logging
import os
import pickle
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import balanced_checkpoint
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.training.checkpoint import (
    Checkpoint,
    _say_scale,
    read_checkpoint,
    unet_from_checkpoint,
    write_bare,
    write_checkpoint,
)
from unetrt.training.state_dicts import WRAPPED_BY
from unetrt.training.unet import DoubleConv, UNet


class Bomb:
    """Runs code when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def checkpoint_of(spec: ModelSpec) -> Checkpoint:
    net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear)
    golden = [(np.full((4, 5, spec.channels), 7, np.uint8), (8, 10))]
    return Checkpoint(spec, net.state_dict(), golden, {"epoch": 3, "best": 0.5})


def test_a_checkpoint_is_on_the_disk_before_it_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the one or the other."""
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    monkeypatch.setattr("os.fsync", sync)
    write_checkpoint(tmp_path / "last.pth", checkpoint_of(ModelSpec(channels=1, width=2)))
    assert synced == ["file", "folder"]


def test_writing_and_reading_is_the_identity(tmp_path: Path) -> None:
    spec = ModelSpec(channels=1, classes=3, width=2, scale=0.3, mask_values=(0, 9, 255))
    written = checkpoint_of(spec)
    write_checkpoint(tmp_path / "a.pth", written)
    read = read_checkpoint(tmp_path / "a.pth")
    assert read.spec == spec
    assert not read.bare
    assert read.resume == {"epoch": 3, "best": 0.5}
    assert read.golden[0][1] == (8, 10)
    assert np.array_equal(read.golden[0][0], written.golden[0][0])
    assert read.state.keys() == written.state.keys()
    assert all(torch.equal(read.state[k], written.state[k]) for k in read.state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("with_values", [False, True])
def test_a_bare_state_dict_says_all_by_its_shapes(
    tmp_path: Path, channels: int, classes: int, bilinear: bool, with_values: bool
) -> None:
    state: dict[str, Any] = dict(UNet(channels, classes, 4, bilinear).state_dict())
    values = tuple(range(0, 10 * max(2, classes), 10))
    if with_values:
        state["mask_values"] = list(values)
    torch.save(state, tmp_path / "bare.pth")
    read = read_checkpoint(tmp_path / "bare.pth")
    assert read.bare
    assert (read.spec.channels, read.spec.classes) == (channels, classes)
    assert (read.spec.width, read.spec.bilinear) == (4, bilinear)
    assert read.spec.resize == "pil-bicubic"
    assert read.spec.mask_values == (values if with_values else tuple(range(max(2, classes))))
    net = unet_from_checkpoint(read)
    assert not net.training
    assert torch.equal(net.state_dict()["outc.conv.weight"], state["outc.conv.weight"])


def test_a_bare_file_keeps_weights_and_colours(tmp_path: Path) -> None:
    written = checkpoint_of(ModelSpec(width=2, mask_values=((0, 0, 0), (255, 0, 9))))
    write_bare(tmp_path / "bare.pth", written)
    raw = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert raw.pop("mask_values") == [[0, 0, 0], [255, 0, 9]]
    UNet(3, 2, 2).load_state_dict(raw)
    assert read_checkpoint(tmp_path / "bare.pth").spec.mask_values == ((0, 0, 0), (255, 0, 9))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.module."])
def test_what_other_scripts_wrap_it_in_comes_off(
    key: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights beside the network are left out, and that is said: they may be a part of it."""
    checkpoint = balanced_checkpoint(classes=2)
    state = {f"{prefix}{name}": tensor for name, tensor in checkpoint.state.items()}
    if prefix:
        state["loss.weight"] = torch.zeros(2)  # beside the network, as Lightning has it
    content = {key: state, "epoch": 3, "optimizer": {"lr": 0.1}} if key else state
    torch.save(content, tmp_path / "old.pth")
    read = read_checkpoint(tmp_path / "old.pth")
    assert read.bare
    assert read.state.keys() == checkpoint.state.keys()
    assert ("without 1 beside them, as loss.weight" in caplog.text) == bool(prefix)


def test_numbers_and_text_may_stand_among_the_weights(tmp_path: Path) -> None:
    """Not only above a state_dict; a tensor that the network has no place for is another net."""
    state = balanced_checkpoint(classes=2).state
    torch.save({**state, "epoch": 3, "args": {"lr": 0.1}, "by": "me"}, tmp_path / "old.pth")
    assert read_checkpoint(tmp_path / "old.pth").state.keys() == state.keys()
    torch.save({**state, "attention.weight": torch.ones(2)}, tmp_path / "old.pth")
    with pytest.raises(UserError, match="has no place for"):
        read_checkpoint(tmp_path / "old.pth")


def test_counters_of_batch_norms_may_be_left_out(tmp_path: Path) -> None:
    """PyTorch before 0.4.1 had none, and exporters drop them."""
    state = balanced_checkpoint(classes=2).state
    torch.save({n: t for n, t in state.items() if "num_batches" not in n}, tmp_path / "old.pth")
    read = read_checkpoint(tmp_path / "old.pth")
    assert read.state.keys() == state.keys()
    unet_from_checkpoint(read)


@pytest.mark.parametrize("bilinear", [False, True])
def test_biases_before_batch_norms_are_part_of_their_means(tmp_path: Path, bilinear: bool) -> None:
    """Older versions of Pytorch-UNet have them, under the names of today."""
    checkpoint = balanced_checkpoint(classes=2, bilinear=bilinear)
    net = unet_from_checkpoint(checkpoint)
    for block in (m for m in net.modules() if isinstance(m, DoubleConv)):
        for index in (0, 3):
            convolution = block.double_conv[index]
            bias = torch.rand(convolution.out_channels)  # type: ignore[arg-type]
            convolution.bias = torch.nn.Parameter(bias)  # type: ignore[assignment]
    torch.save(net.state_dict(), tmp_path / "old.pth")
    read = read_checkpoint(tmp_path / "old.pth")
    assert read.state.keys() == checkpoint.state.keys()
    image = torch.rand(1, 1, 40, 56)
    with torch.no_grad():
        expected, without = net(image), unet_from_checkpoint(checkpoint)(image)
        found = unet_from_checkpoint(read)(image)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(without, expected, atol=1e-2), "the biases have to tell"


def test_a_file_of_two_networks_says_which_there_are(tmp_path: Path) -> None:
    state = balanced_checkpoint(classes=2).state
    for others in (
        {f"ema.{n}": t for n, t in state.items()} | state,
        {f"{who}.{n}": t for who in ("student", "teacher") for n, t in state.items()},
    ):
        torch.save(others, tmp_path / "two.pth")
        with pytest.raises(UserError, match="several networks") as caught:
            read_checkpoint(tmp_path / "two.pth")
        assert "ema." in str(caught.value.seen) or "teacher." in str(caught.value.seen)


def test_older_names_a_whole_model_and_a_program_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"inc.conv.conv.0.weight": torch.zeros(4, 3, 3, 3)}, path)
    with pytest.raises(UserError, match="older Pytorch-UNet"):
        read_checkpoint(path)
    torch.save(UNet(1, 2, 4), path)
    with pytest.raises(UserError, match="not a checkpoint") as caught:
        read_checkpoint(path)
    assert ".state_dict()" in str(caught.value.hint)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    with pytest.raises(UserError, match="not a checkpoint") as caught:
        read_checkpoint(path)
    assert "TorchScript" in str(caught.value.seen)


def test_a_scale_that_nobody_has_stated_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = bare_with([0, 255], tmp_path / "bare.pth", classes=2)
    _say_scale.cache_clear()
    with caplog.at_level(logging.WARNING, "unetrt"):
        for _ in range(2):
            assert read_checkpoint(path).with_overrides(SpecOverrides()).spec.scale == 0.5
    assert caplog.text.count("does not say its scale: 0.5") == 1
    caplog.clear()
    _say_scale.cache_clear()
    with caplog.at_level(logging.WARNING, "unetrt"):
        read_checkpoint(path).with_overrides(SpecOverrides(scale=0.5))
    assert not caplog.records


def test_mask_values_of_a_file_that_does_not_say_them(tmp_path: Path) -> None:
    torch.save(balanced_checkpoint(classes=2).state, tmp_path / "bare.pth")
    bare = read_checkpoint(tmp_path / "bare.pth")
    assert bare.spec.mask_values == (0, 1)
    asked = bare.with_overrides(SpecOverrides(mask_values=(0, 255)))
    assert asked.spec.mask_values == (0, 255)
    with pytest.raises(UserError, match="mask_values"):
        bare.with_overrides(SpecOverrides(mask_values=(0, 1, 2)))


def bare_with(values: object, path: Path, classes: int = 4) -> Path:
    torch.save({**UNet(1, classes, 2).state_dict(), "mask_values": values}, path)
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2], (0, 1, 2, 3)),
        ([0, 3, 255], (0, 3, 255, 1)),
        ([0.0, 1.0, 2.0, 5.0], (0, 1, 2, 5)),
        ([[0, 0, 0], [9, 0, 0]], ((0, 0, 0), (9, 0, 0), (1, 1, 1), (2, 2, 2))),
        (
            [[0, 0, 0, 255], [9, 0, 0, 255], [0, 9, 0, 255], [0, 0, 9, 255]],
            ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)),
        ),
        ([[0, 255], [9, 255], [7, 255], [255, 255]], (0, 9, 7, 255)),
    ],
)
def test_values_of_pytorch_unet_are_completed(
    tmp_path: Path, values: object, expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It writes the values that its data set had, and of masks with alpha that too."""
    read = read_checkpoint(bare_with(values, tmp_path / "bare.pth"))
    assert read.spec.mask_values == expected
    padded = [r for r in caplog.records if "names no mask value" in r.message]
    assert len(padded) == (len(values) < 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [["a", "b"], 3, [0, 1, 2, 3, 4], [0, 0, 1, 2], [0, 300], [0.5], [[0, 0, 0], 1], [None],
     [[0, 0], [0, 255]], [[]], [float("nan")], [[1, 2, 3, 0], [1, 2, 3, 255]]],
)  # fmt: skip
def test_values_that_are_none_name_the_file(tmp_path: Path, values: object) -> None:
    path = bare_with(values, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="mask_values") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files here")
def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end."""
    import resource

    path, checkpoint = tmp_path / "last.pth", checkpoint_of(ModelSpec(channels=1, width=2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in ("there is none yet", "the file of before is there, and whole"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(UserError, match=before) as caught:
                write_checkpoint(path, checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(path) in str(caught.value)
        write_checkpoint(path, checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]
    assert read_checkpoint(path).spec == checkpoint.spec


def test_weights_saved_from_data_parallel_load(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in UNet(1, 2, 2).state_dict().items()}
    torch.save(state, tmp_path / "parallel.pth")
    assert read_checkpoint(tmp_path / "parallel.pth").spec.channels == 1


def bad_file(kind: str, path: Path) -> None:
    good = checkpoint_of(ModelSpec(channels=1, width=2))
    if kind == "text":
        path.write_text("these are not weights\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("ran"))))
    elif kind == "torch pickle":
        torch.save({"format": Bomb(path.with_name("ran"))}, path)
    elif kind == "truncated":
        write_checkpoint(path, good)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "other dictionary":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "other format":
        torch.save({"format": "unetrt-checkpoint-99"}, path)
    elif kind == "wrong shape":
        good.state["up2.up.weight"] = torch.zeros(1, 2)
        write_checkpoint(path, good)
    elif kind == "missing weight":
        del good.state["up2.up.weight"]
        write_checkpoint(path, good)
    elif kind == "unknown weight":
        good.state["extra"] = torch.zeros(1)
        write_checkpoint(path, good)
    elif kind == "nan":
        good.state["outc.conv.weight"][0] = float("nan")
        write_checkpoint(path, good)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("text", "is not a checkpoint"),
        ("empty", "is not a checkpoint"),
        ("zip", "is not a checkpoint"),
        ("pickle", "would run code"),
        ("torch pickle", "would run code"),
        ("truncated", "is not a checkpoint"),
        ("list", "is not a checkpoint"),
        ("other dictionary", "is not a checkpoint"),
        ("other format", "unetrt-checkpoint-99"),
        ("wrong shape", "up2.up.weight"),
        ("missing weight", "up2.up.weight"),
        ("unknown weight", "extra"),
        ("nan", "not finite"),
        ("none", "no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_and_never_run(tmp_path: Path, kind: str, says: str) -> None:
    path = tmp_path / "bad.pth"
    bad_file(kind, path)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["", "beside", "below", *WRAPPED_BY])
def test_the_hint_writes_what_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Of a whole model, and of weights with a score of NumPy beside them."""
    net = UNet(3, 2, 2)
    content: Any = {key: net.state_dict(), "best": np.float64(0.9)} if key else net
    if key == "below":
        content = {"model": net, "epoch": 3}
    if key == "beside":
        content = {**net.state_dict(), "mask_values": [np.uint8(0), np.uint8(255)]}
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(UserError, match="would run code") as caught:
        read_checkpoint(tmp_path / "old.pth")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value.hint).partition(": ")[2], {"torch": torch})
    read = read_checkpoint(tmp_path / "weights.pth")
    assert torch.equal(read.state["outc.conv.bias"], net.state_dict()["outc.conv.bias"])


def test_an_archive_whose_directory_is_damaged(tmp_path: Path) -> None:
    """Its end says that it is an archive, and its directory is none."""
    torch.save({"a": torch.ones(3)}, tmp_path / "c.pth")
    data = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(UserError, match="not a checkpoint") as caught:
        read_checkpoint(tmp_path / "c.pth")
    assert "damaged or foreign zip" in str(caught.value.seen)
