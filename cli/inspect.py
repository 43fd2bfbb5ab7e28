"""unetrt inspect: what a model is, and whether its files are those that were built."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .shared import MODEL_HELP, model_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=model_path, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="to standard output")


def run(args: argparse.Namespace) -> int:
    from ..export.inspect import describe_model

    description = describe_model(args.model)
    text = json.dumps(description, indent=2) if args.json else "\n".join(_lines(description))
    sys.stdout.write(text + "\n")
    return 0


def _lines(content: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in content.items():
        if value in ({}, [], (), None):
            lines.append(f"{indent}{key}: none")
        elif isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list | tuple) and isinstance(value[0], dict):
            rows = (", ".join(f"{k} {v}" for k, v in row.items()) for row in value)
            lines += [f"{indent}{key}:", *(f"{indent}  {row}" for row in rows)]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
