"""A checkpoint with a flipped bit, which torch.load opens without a word."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import balanced_checkpoint
from unetrt.contract.errors import UserError
from unetrt.training.archive import damaged_entry
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_bare, write_checkpoint


def flip_a_weight(path: Path, data: bytes) -> None:
    """A bit of a mantissa in the first weights: the number stays finite."""
    content = path.read_bytes()
    assert content.count(data) == 1
    place = content.index(data)
    path.write_bytes(content[:place] + bytes([data[0] ^ 1 << 6]) + content[place + 1 :])


@contextmanager
def crcs(computed: bool) -> Iterator[None]:
    torch.serialization.set_crc32_options(computed)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("write", [write_checkpoint, write_bare])
def test_a_flipped_bit_of_a_weight_is_told(
    write: Callable[[Path, Checkpoint], None], tmp_path: Path
) -> None:
    path, checkpoint = tmp_path / "c.pth", balanced_checkpoint()
    weights = checkpoint.state["inc.double_conv.0.weight"].numpy().tobytes()
    write(path, checkpoint)
    flip_a_weight(path, weights)
    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match="is a damaged checkpoint") as caught:
        read_checkpoint(path)
    assert str(caught.value.seen).startswith("data/0 ")


def test_a_file_whose_crcs_were_not_computed_is_read(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "c.pth", balanced_checkpoint()
    with crcs(computed=False):
        write_checkpoint(path, checkpoint)
    assert zipfile.ZipFile(path).testzip() is not None
    assert read_checkpoint(path).spec == checkpoint.spec


def test_the_form_before_archives_is_read(tmp_path: Path) -> None:
    state = balanced_checkpoint().state
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "c.pth").state.keys() == state.keys()


def test_a_damaged_compressed_entry_is_told(tmp_path: Path) -> None:
    """No file of PyTorch's own, but torch.load reads it: written by a tool that packs it again."""
    torch.save(balanced_checkpoint().state, tmp_path / "c.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "c.pth") as old, zipfile.ZipFile(packed, "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert damaged_entry(packed) is None
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 255
    packed.write_bytes(data)
    assert damaged_entry(packed) is not None
