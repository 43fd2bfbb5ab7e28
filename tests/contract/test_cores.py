"""How many cores may be kept busy: a container's share of the time beside the affinity."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetrt.contract import cores
from unetrt.contract.cores import granted_threads, usable_cores
from unetrt.engine.open import open_engine


@pytest.fixture
def grant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of control groups, of a machine with eight cores."""
    (tmp_path / "groups").write_text("3:cpu,cpuacct:/pod/box\n0::/pod/box\n")
    monkeypatch.setattr("unetrt.contract.groups._GROUPS", tmp_path / "groups")
    monkeypatch.setattr("unetrt.contract.groups._ROOT", tmp_path)
    monkeypatch.setattr(cores, "_allowed_cores", lambda: 8)
    return tmp_path


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "800000 100000"}, None),
        ({"cpu.max": "9900000 100000"}, None),
        ({"pod/box/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu/pod/box/cpu.cfs_quota_us": "50000", "cpu/pod/box/cpu.cfs_period_us": "25000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_a_share_of_the_time_is_told_in_cores(
    texts: dict[str, str], expected: int | None, grant: Path
) -> None:
    write(grant, texts)
    assert granted_threads() == expected
    assert usable_cores() == (expected or 8)


def test_the_affinity_counts_where_nothing_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_quotas", lambda: iter(()))
    assert granted_threads() is None
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_pytorch_computes_with_so_many_threads_as_are_granted(
    grant: Path, checkpoint_file: Callable[..., Path]
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        write(grant, {"cpu.max": "300000 100000"})
        open_engine(checkpoint_file()).close()
        assert torch.get_num_threads() == 3
        open_engine(checkpoint_file(), threads=2).close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
