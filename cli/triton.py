"""unetrt triton: engine directories to a model repository for NVIDIA's Triton server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .shared import positive, wrong

if TYPE_CHECKING:
    from ..export.triton import Repository, Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("engines", type=Path, nargs="+", metavar="ENGINE_DIR")
    add("-o", "--output", type=Path, required=True, metavar="MODEL_REPOSITORY")
    add("--instances", type=positive, default=1, metavar="N", help="of each engine (default: 1)")
    kinds = ("auto", "cpu", "gpu")
    add("--kind", choices=kinds, default="auto", help="where ONNX Runtime runs (default: cpu)")
    help_text = "images that requests are merged to (default: the plan's most, else 8)"
    add("--max-batch", type=positive, metavar="N", help=help_text)
    help_text = "how long a request waits for others (default: 1000)"
    add("--delay", type=microseconds, default=1000, metavar="MICROSECONDS", help=help_text)
    add("--replace", action="store_true", help="write over a repository that differs")


def run(args: argparse.Namespace) -> int:
    from ..export.triton import write_repository
    from ..export.triton_config import TritonOptions

    options = TritonOptions(
        instances=args.instances,
        kind=args.kind,
        max_batch=args.max_batch,
        delay=args.delay,
    )
    written = write_repository(args.engines, args.output, options, replace=args.replace)
    sys.stdout.write(_summary(written))
    return 0


def microseconds(text: str) -> int:
    if not text.isdecimal():
        raise wrong(text, "microseconds, a whole number")
    return int(text)


def _summary(written: Repository) -> str:
    head = f"{written.path}: {len(written.models)} engines"
    if written.reused:
        head += ", up to date"
    lines = [head, *map(_line, written.models)]
    lines.append(
        "tritonserver --disable-auto-complete-config "
        f"--model-repository={written.path.resolve()}   serves it"
    )
    return "\n".join([*lines, ""])


def _line(model: Served) -> str:
    manifest = model.manifest
    runtime = f"{manifest.backend} {manifest.precision}"
    if manifest.backend == "tensorrt":
        runtime += f", for a Triton release with TensorRT {manifest.backend_version}"
    return f"  {model.name}: batches of up to {model.max_batch}, {runtime}"
