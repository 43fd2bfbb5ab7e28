"""What PyTorch rounds to on a GPU, told without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unetrt.engine.torch_backend import rounds_to_tf32


@pytest.fixture(autouse=True)
def setting() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(autouse=True)
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def test_convolutions_on_cuda_are_as_pytorch_ships_them() -> None:
    assert rounds_to_tf32("cuda:1")
    assert not rounds_to_tf32("cpu")


def test_older_gpus_have_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not rounds_to_tf32("cuda")


def test_the_environment_of_nvidia_s_libraries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not rounds_to_tf32("cuda")


def test_whoever_has_turned_it_off_is_heeded_by_either_switch() -> None:
    torch.backends.cudnn.allow_tf32 = False
    assert not rounds_to_tf32("cuda")
    torch.backends.cudnn.allow_tf32 = True
    assert rounds_to_tf32("cuda")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # the older switch cannot be read any more
    assert not rounds_to_tf32("cuda")
