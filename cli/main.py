"""`unetrt VERB …`: find the verb, run it, turn its outcome into a message and an exit status."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import logging
import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..contract.errors import UserError

VERBS = {
    "train": "learn a U-Net from images and masks",
    "evaluate": "score a model's masks against the truth",
    "export": "write a checkpoint as one ONNX file",
    "build": "compile a checkpoint or ONNX file to an engine, and prove its masks",
    "refit": "new weights of the same net into an engine, proven as in its build",
    "inspect": "say what a model is and verify its files",
    "predict": "images to masks",
    "bench": "every engine against the PyTorch baseline, speed and agreement",
    "triton": "engines to a model repository for NVIDIA's Triton server",
    "doctor": "what this machine can run, and how to get what is missing",
    "demo": "the whole chain on pictures that it draws itself",
    "convert": "a checkpoint in the bare form of Pytorch-UNet",
}
INTERRUPTED = 130
STDERR = 2
NO_THREAD = "can't start new thread"
"""Python's words where a limit of the user or the container is reached."""
ANSWERS_SIGNALS = "predict"
"""The verb that goes on after a signal, to an end of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 some inputs failed or a gate did not pass, 2 wrong request, 130."""
    _open_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] not in VERBS:
        top = _top_parser()
        top.parse_args(arguments or ["--help"])
        top.error(f"the verb comes first: seen: {arguments[0]!r}, expected: unetrt VERB …")
    verb = arguments[0]
    # Only the verb that runs is imported: --help and --version stay quick.
    module = importlib.import_module(f".{verb}", __package__)
    parser = _Parser(f"unetrt {verb}", description=f"{VERBS[verb]}.")
    module.add_arguments(parser)
    return _run(verb, lambda: module.run(parser.parse_args(arguments[1:])))


def _run(verb: str, run: Callable[[], int]) -> int:
    from ..contract.errors import UserError
    from ..contract.log import quiet_readers
    from ..runtime.stop import interrupted_by_signals

    _show_warnings()
    quiet_readers()
    try:
        # As Ctrl-C does it: what is half written goes with the process.
        with nullcontext() if verb == ANSWERS_SIGNALS else interrupted_by_signals():
            status = run()
        sys.stdout.flush()
        return status
    except UserError as error:
        error.hint = error.hint or f"unetrt {verb} --help"
        sys.stderr.write(f"unetrt {verb}: error: {error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write(f"unetrt {verb}: interrupted; what is written is whole\n")
        return INTERRUPTED
    except OSError as error:
        sys.stderr.write(f"unetrt {verb}: error: {_refused(error, verb)}\n")
        return 2
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        sys.stderr.write(f"unetrt {verb}: error: {_no_thread(error)}\n")
        return 2


def _no_thread(error: RuntimeError) -> UserError:
    from ..contract.errors import UserError

    return UserError(
        "the system lets this process start no more threads",
        seen=error,
        expected="room for a few threads for each core",
        hint="ulimit -u   says how many it allows; docker run --pids-limit in a container",
    )


def _refused(error: OSError, verb: str) -> UserError:
    """A full disk, a folder that may not be written: the system's words in our form."""
    from ..contract.errors import UserError

    hint = "name another file or folder"
    if error.filename is None:  # it may be a temporary file, which no flag names
        hint = f"df -h   shows a full disk; TMPDIR=DIR unetrt {verb} …   is for temporary files"
    return UserError(
        "the system refused to read or write a file",
        seen=error,
        expected="room on the disk, and the right to use the file",
        hint=hint,
    )


class _Parser(argparse.ArgumentParser):
    """Its errors end in a hint, as all of ours do."""

    def error(self, message: str) -> NoReturn:
        hint = f"Hint: {self.prog} --help"
        self.exit(2, f"{self.prog}: error: {message}\n  {hint}\n")


class _Lasting(io.FileIO):
    """Whoever read it may go, as `| head`, a tee that is interrupted and a terminal that is closed.

    The work goes on. So it does where a log takes no more: its words are not worth it.
    """

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._is_left(error):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
                return super().write(data)
            if self.fileno() != STDERR:
                raise
            return memoryview(data).nbytes

    def _is_left(self, error: OSError) -> bool:
        """A terminal that is gone says EIO, as a broken disk does."""
        terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return isinstance(error, BrokenPipeError) or terminal


def _open_streams() -> None:
    """A closed stream swallows what is written; names that are no Unicode are shown escaped."""
    _take_numbers()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open to the end
            setattr(sys, name, null)
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _lasting(stream))


def _take_numbers() -> None:
    """Of streams that are closed: a file that had one of them, as a journal, would get its words.

    Those of signal handlers, of libraries in C and of processes that are started.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream on a file that outlasts its reader; as buffered as Python was told to be."""
    if sys.platform == "win32":  # its console is no file
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _show_warnings() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("unetrt")
    logger.handlers[:] = [handler]


def _top_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:10}{text}" for name, text in VERBS.items())
    parser = _Parser(
        "unetrt",
        usage="unetrt VERB …    unetrt VERB --help",
        description="From a folder of images and masks to masks at full hardware speed.",
        epilog=f"verbs:\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unetrt {_version()}")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=argparse.SUPPRESS)
    return parser


def _version() -> str:
    try:
        return version("unetrt")
    except PackageNotFoundError:  # run from its folder, not installed
        return "from source"
