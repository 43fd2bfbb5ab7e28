"""An error says what happened, what was seen, what was expected and what helps."""

from __future__ import annotations

import pytest

from unetrt.contract.errors import GateError, ImageError, UserError, first_line


def test_all_parts_are_shown() -> None:
    error = UserError("no engine", seen="a folder", expected="a file", hint="unetrt build")
    assert str(error) == (
        "no engine\n  seen:     a folder\n  expected: a file\n  Hint: unetrt build"
    )


def test_missing_parts_are_left_out() -> None:
    assert str(UserError("no engine")) == "no engine"
    assert str(UserError("no engine", hint="build")) == "no engine\n  Hint: build"
    assert str(UserError("wrong", seen=0)) == "wrong\n  seen:     0"


def test_the_reason_is_one_line() -> None:
    error = UserError("bad image", seen="2 bytes", expected="more", hint="none")
    assert error.reason == "bad image (2 bytes)"
    assert UserError("bad image").reason == "bad image"


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (ImageError, 2), (GateError, 1)])
def test_exit_status(kind: type[UserError], status: int) -> None:
    error = kind("x")
    assert error.status == status
    assert isinstance(error, UserError)


@pytest.mark.parametrize(
    ("found", "line"),
    [("\n one\ntwo", "one"), (ValueError("a\nb"), "a"), (MemoryError(), "MemoryError"), ("", "")],
)
def test_the_first_line_of_what_was_seen(found: object, line: str) -> None:
    assert first_line(found) == line
