"""The lines that bring optional packages: true in a clone, and in the versions that were tested."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest

from unetrt.contract.modules import INSTALL

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("line", sorted(set(INSTALL.values())))
def test_a_line_goes_through_the_versions_that_were_tested(line: str) -> None:
    command, _, where = line.partition("   ")
    words = shlex.split(command)
    assert words[:4] == ["pip", "install", "-c", "constraints.txt"]
    assert (ROOT / words[3]).is_file()
    assert len(words) == 5
    assert where == "in the clone of unetrt"


def test_the_extras_that_are_named_are_there() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {extra for line in INSTALL.values() for extra in re.findall(r"unetrt\[(\w+)\]", line)}
    assert named
    assert named <= set(config["options.extras_require"])
