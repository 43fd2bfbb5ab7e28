"""Flags of `unetrt bench` whose values would end in an error after the first measurements."""

from __future__ import annotations

import argparse

import pytest

from unetrt.cli.bench import add_arguments


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--row-timeout", "3000000"], "at most 1e+06"),
        (["--row-timeout", "1e12"], "at most 1e+06"),
        (["--seconds", "1000001"], "at most 1e+06"),
        (["--seconds", "inf"], "above 0"),
        (["--sizes", "64x64,20000x20000"], "at most 178956970 pixels"),
    ],
)
def test_what_no_machine_can_do_is_told_at_once(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["m.pth", "--images", "x", *flags])
    assert told in capsys.readouterr().err
    args = parser.parse_args(["m.pth", "--images", "x", "--row-timeout", "1e6", "--seconds", "9"])
    assert (args.row_timeout, args.seconds) == (1e6, 9)
