"""A pycuda that is broken does not take the checkpoint's GPU away."""

from __future__ import annotations

import logging

import pytest

from unetrt.engine import torch_backend


@pytest.fixture(autouse=True)
def _said_anew() -> None:
    torch_backend._has_pycuda.cache_clear()


@pytest.mark.parametrize(
    ("installed", "lacks", "used", "said"),
    [
        (True, "", True, 0),
        (True, "pycuda fails (no libcurand)", False, 1),
        (False, "pycuda is not installed", False, 0),
    ],
)
def test_pycuda_is_used_where_it_works(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    installed: bool,
    lacks: str,
    used: bool,
    said: int,
) -> None:
    monkeypatch.setattr(torch_backend, "is_installed", lambda _: installed)
    monkeypatch.setattr(torch_backend, "pycuda_lacks", lambda: lacks)
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert [torch_backend._has_pycuda() for _ in range(3)] == [used] * 3
    assert len(caplog.records) == said
    torch_backend._has_pycuda.cache_clear()
