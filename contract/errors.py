"""The errors that a user caused and can fix: shown without a traceback."""

from __future__ import annotations

import shlex
from pathlib import Path

UPGRADE_HINT = "git pull && pip install -c constraints.txt .   in a clone of unetrt"
"""What a file of a newer version asks for."""


def first_line(found: object) -> str:
    """Of a message that may fill a page and begin with empty lines; an error may have no words."""
    name = type(found).__name__ if isinstance(found, BaseException) else ""
    return (str(found).strip().splitlines() or [name])[0]


def as_word(path: Path) -> str:
    """A path as a hint's command takes it: quoted where it holds spaces."""
    return shlex.quote(str(path))


class UserError(Exception):
    """What happened, what was seen, what was expected and the command that helps.

    The command line prints it and exits with `status` (2: the request itself was wrong).
    """

    status = 2

    def __init__(
        self,
        message: str,
        *,
        seen: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.seen = seen
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.seen is not None:
            lines.append(f"  seen:     {self.seen}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.hint is not None:
            lines.append(f"  Hint: {self.hint}")
        return "\n".join(lines)

    @property
    def reason(self) -> str:
        """The error on one line, for a table or a journal."""
        seen = f" ({self.seen})" if self.seen is not None else ""
        return f"{self.message}{seen}"


class ImageError(UserError):
    """One image or mask that cannot be used. In a batch it costs that image alone."""


class DeviceMemoryError(UserError):
    """A batch does not fit into the device's memory; a smaller one may."""


class GateError(UserError):
    """An engine whose masks differ too much from PyTorch's: built, then refused."""

    status = 1
