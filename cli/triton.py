"""unetrt triton: engine directories to a model repository for NVIDIA's Triton server."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .shared import local, model_path, whole

if TYPE_CHECKING:
    from ..export.triton import Repository, Served

MOST_INSTANCES = 1024
MOST_BATCH = 65_536
MOST_DELAY = 3_600_000_000
"""An hour. Triton's configuration holds larger numbers, but not every one that can be typed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("engines", type=model_path, nargs="+", metavar="ENGINE_DIR")
    hint = "unetrt triton … -o repository   then copy it, whole, to {}"
    repository = local("a model repository is written to a folder", hint)
    add("-o", "--output", type=repository, required=True, metavar="MODEL_REPOSITORY")
    instances = whole(1, MOST_INSTANCES)
    add("--instances", type=instances, default=1, metavar="N", help="of each engine (default: 1)")
    kinds = ("auto", "cpu", "gpu")
    add("--kind", choices=kinds, default="auto", help="where ONNX Runtime runs (default: cpu)")
    help_text = "images that requests are merged to (default: the plan's most, else 8)"
    add("--max-batch", type=whole(1, MOST_BATCH), metavar="N", help=help_text)
    help_text = "how long a request waits for others (default: 1000)"
    delay = whole(0, MOST_DELAY)
    add("--delay", type=delay, default=1000, metavar="MICROSECONDS", help=help_text)
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


def _summary(written: Repository) -> str:
    count = len(written.models)
    head = f"{written.path}: {count} engine{'' if count == 1 else 's'}"
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
