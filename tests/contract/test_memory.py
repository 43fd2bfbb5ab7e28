"""How much memory may be used: a container's or a scheduler's job's, beside the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetrt.contract.memory import memory_bytes
from unetrt.runtime import budget
from unetrt.runtime.pipeline import PipelineOptions


@pytest.mark.parametrize(
    ("groups", "where"),
    [
        ("0::/", ""),
        ("0::/system.slice/job_7/step_0", "system.slice/job_7/step_0"),
        ("0::/system.slice/job_7/step_0", "system.slice/job_7"),
        ("4:cpu,memory:/slurm/job_7\n1:name=systemd:/x\n0::/", "memory/slurm/job_7"),
        ("9:memory:/docker/of the host", "memory"),
    ],
)
def test_the_memory_is_that_of_the_container_or_the_scheduler_s_job(
    groups: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = where.startswith("memory")
    limit = tmp_path / where / ("memory.limit_in_bytes" if first else "memory.max")
    limit.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "groups").write_text(f"{groups}\n")
    monkeypatch.setattr("unetrt.contract.groups._GROUPS", tmp_path / "groups")
    monkeypatch.setattr("unetrt.contract.groups._ROOT", tmp_path)
    whole = memory_bytes()
    assert whole > 1 << 28
    limit.write_text("max\n")
    assert memory_bytes() == whole
    limit.write_text("123456\n")
    assert memory_bytes() == 123456
    assert PipelineOptions().memory == 123456 // budget.SHARE
