"""Arguments and messages that several verbs have in common."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..contract.spec import MaskValue, SpecOverrides
    from ..engine.base import Engine

COPY = "copy {} to this machine, and name the copy"
WHOLE_COPY = "write it here, then copy it, whole, to {}"
MODEL_HELP = "a checkpoint (.pth), an ONNX file or an engine directory"


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    backends = ("auto", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
    parser.add_argument("--backend", choices=backends, default="auto", help="default: the model's")
    add_device_argument(parser)
    parser.add_argument("--batch", type=positive, help="images a batch (default: the engine's)")
    add_override_arguments(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "cpu, cuda or cuda:N (default: auto)"
    parser.add_argument("--device", type=device, default="auto", help=help_text)


def add_scale_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", "-s", type=scale, help="for a checkpoint: image to network size")


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    add_scale_argument(parser)
    parser.add_argument(
        "--mask-threshold", "-t", type=threshold, help="for a one-class checkpoint (default: 0.5)"
    )
    help_text = "of the classes in masks, for a checkpoint that does not say them (default: 0,1,…)"
    parser.add_argument("--mask-values", type=mask_values, metavar="VALUE,…", help=help_text)


def add_json_argument(parser: argparse.ArgumentParser, what: str) -> None:
    help_text = f"{what}; - for standard output"
    parser.add_argument("--json", type=json_file, metavar="FILE", help=help_text)


def add_bit_depth_argument(parser: argparse.ArgumentParser) -> None:
    help_text = "bits really used in 16-bit images (default: the model's)"
    parser.add_argument(
        "--bit-depth", type=int, choices=range(8, 17), metavar="8-16", help=help_text
    )


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise wrong(text, "a whole number above 0")
    return int(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise wrong(text, f"a whole number from {least} to {most}")
        return int(text)

    return number


def number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise wrong(text, expected) from None


def scale(text: str) -> float:
    value = number(text, "a number above 0, to 8")
    if not 0 < value <= 8:
        raise wrong(text, "a number above 0, to 8")
    return value


def threshold(text: str) -> float:
    value = number(text, "a number between 0 and 1")
    if not 0 < value < 1:
        raise wrong(text, "a number between 0 and 1")
    return value


def seconds(text: str) -> float:
    value = number(text, "seconds, above 0")
    if not 0 < value < float("inf"):
        raise wrong(text, "seconds, above 0")
    return value


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise wrong(text, "auto, cpu, cuda or cuda:N")
    return text


def names(text: str) -> tuple[str, ...]:
    """Separated by commas; UTF-8, too, where the locale is of another encoding."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return tuple(part.strip() for part in text.split(","))


def share(text: str) -> float:
    """`5%` or `0.05`."""
    expected = "a share from 0 to 1, or a percentage"
    value = number(text.removesuffix("%"), expected) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise wrong(text, expected)
    return value


def size(text: str) -> tuple[int, int]:
    """`256x320`: (height, width)."""
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text.lower(), re.ASCII)
    if not found:
        raise wrong(text, "height and width in pixels, as 200x300")
    return int(found[1]), int(found[2])


def local(does: str, hint: str = COPY) -> Callable[[str], Path]:
    """For a path of this machine: a Path would make a folder `s3:` here of an address.

    does: "an engine is written to a folder"; hint: may name the address, as {}.
    """

    def path(text: str) -> Path:
        from ..contract.addresses import MARK
        from ..contract.errors import UserError

        if not text:
            raise wrong(text, "the name of a file or folder")
        if MARK in text:
            raise UserError(
                f"{does} of this machine",
                seen=text,
                expected="a path that is no address",
                hint=hint.format(text),
            )
        return Path(text)

    return path


model_path = local("a model is read from a file or folder")
images = local(
    "this verb reads from a folder", "copy {} to a folder here; predict -i alone reads addresses"
)


def mask_values(text: str) -> tuple[MaskValue, ...]:
    """As 0,128,255 or, for colours, 0:0:0,255:0:0."""
    try:
        parts = [tuple(int(x) for x in value.split(":")) for value in text.split(",")]
    except ValueError:
        raise wrong(text, "whole numbers such as 0,1,2 or colours such as 0:0:0,255:0:0") from None
    return tuple(part[0] if len(part) == 1 else part for part in parts)


def place(text: str) -> Path:
    """A folder, or its address in a store. UserError where the store cannot be opened."""
    from ..contract.addresses import path_from_text

    if not text or text.startswith("memory:"):  # what is written there ends with this process
        raise wrong(text, "the name of a folder, or an address that others can read")
    return path_from_text(text)


def json_file(text: str) -> Path:
    """A place that can be written to: known before the work, not after it."""
    if text == "-":
        return Path(text)
    path = local("--json and --trace write to a file", WHOLE_COPY)(text)
    with _trying(text):
        if _is_open_as(1, path):
            return Path("-")
        if _is_open_as(2, path):
            raise wrong(text, "a file, or - for standard output")
        path = path.resolve() if path.is_symlink() else path  # the link stays, its file is replaced
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise wrong(text, "a file in a folder that is there")
        # As write_atomically does: the file itself may be written and its folder not.
        with tempfile.TemporaryFile(dir=path.parent):
            return path


def _is_open_as(number: int, path: Path) -> bool:
    """Whether it is our own stream, as /dev/stdout: a file put in its place would not be that."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False


def writable_dir(does: str) -> Callable[[str], Path]:
    """For a folder that is there or can be made, and written to; nothing is made yet.

    does: as that of `local`.
    """

    def folder(text: str) -> Path:
        path = local(does, WHOLE_COPY)(text)
        with _trying(text):
            above = next(folder for folder in (path, *path.parents) if folder.exists())
            if not above.is_dir():
                raise wrong(text, f"a folder; {above} is a file")
            with tempfile.TemporaryFile(dir=above):
                return path

    return folder


@contextmanager
def _trying(text: str) -> Iterator[None]:
    """What the system refuses of a place, as argparse is told it."""
    try:
        yield
    except OSError as error:
        raise wrong(text, f"a folder that takes files ({error.strerror})") from error


def trace_file(text: str) -> Path:
    """As json_file, but standard output is for the summary."""
    path = json_file(text)
    if str(path) == "-":
        raise wrong(text, "a file, as trace.json")
    return path


def wrong(text: str, expected: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"seen: {text!r}, expected: {expected}")


def overrides_from_args(args: argparse.Namespace, bit_depth: int | None = None) -> SpecOverrides:
    """bit_depth: for the spec of what is made; who reads images with it takes it as it is."""
    from ..contract.spec import SpecOverrides

    result: Any = getattr(args, "result", "mask")
    return SpecOverrides(
        scale=args.scale,
        threshold=args.mask_threshold,
        mask_values=args.mask_values,
        bit_depth=bit_depth,
        result=result,
    )


def engine_from_args(args: argparse.Namespace) -> Engine:
    """Open args.model and say on stderr what was chosen and why."""
    from ..engine.open import open_engine

    engine = open_engine(args.model, args.backend, args.device, overrides_from_args(args))
    sys.stderr.write(f"engine: {engine.label} ({engine.why})\n")
    return engine


def show_failures(failures: Sequence[tuple[object, str]], shown: int = 20) -> None:
    """The images that failed, with reasons, on stderr."""
    for path, reason in failures[:shown]:
        sys.stderr.write(f"failed: {printable(path)}: {printable(reason)}\n")
    if len(failures) > shown:
        sys.stderr.write(f"… and {len(failures) - shown} more (--json FILE lists all)\n")


def printable(text: object) -> str:
    """A name may hold what moves a terminal's cursor or sets its colours: shown escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


WHOLE_IMAGES = "JPEG, PNG, BMP, TIFF, WebP, PGM, PPM, GIF or .npy files that are whole"


def require_done(planned: int, failed: int, expected: str = WHOLE_IMAGES) -> None:
    """Raise UserError when every image failed: such a request was wrong as a whole."""
    from ..contract.errors import UserError

    if failed == planned:
        raise UserError(
            "no image could be used",
            seen=f"{failed} of {planned} failed, for the reasons above",
            expected=expected,
            hint="--json FILE   lists every image with its reason",
        )


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Nothing when no file was asked for; "-" is standard output."""
    if path is None:
        return
    text = json.dumps(content, indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    from ..contract.errors import UserError
    from ..contract.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            seen=error,
            expected="a file that can be written",
            hint="--json FILE   with another FILE, or - for standard output",
        ) from error
