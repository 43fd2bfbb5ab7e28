"""unetrt doctor: what this machine can run, and how to get what is missing."""

from __future__ import annotations

import argparse
import sys

TRT = "unetrt[trt]"
NEEDS_GPU = "of no use without an NVIDIA GPU"
"""In place of a command whose installation would fail here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    del args
    from ..engine.extras import describe_gpus
    from ..engine.probe import choose_backend, default_precision, describe_machine

    gpus = describe_gpus()
    lines = [f"{name:12}{text}" for name, text in {**describe_machine(), **gpus}.items()]
    lines += ["", *_backend_lines(gpu=bool(gpus)), "", *_extra_lines()]
    sys.stdout.write("\n".join(lines) + "\n")
    backend, _ = choose_backend()
    sys.stdout.write(f"\nunetrt build takes {backend} {default_precision(backend)} here\n")
    return 0


def _backend_lines(gpu: bool) -> list[str]:
    from ..engine.probe import probe_backends

    lines = [f"{'backend':14}{'builds':8}{'runs':6}found"]
    for status in probe_backends():
        builds, runs = ("yes" if flag else "no" for flag in (status.builds, status.runs))
        lines.append(f"{status.name:14}{builds:8}{runs:6}{status.detail}")
        if status.install:
            useless = TRT in status.install and not gpu
            lines.append(f"{'':28}{NEEDS_GPU if useless else status.install}")
    return lines


def _extra_lines() -> list[str]:
    """What the backends do without, and the command that brings what is missing."""
    from ..engine.extras import probe_extras

    lines = [f"{'also':14}{'found':14}for"]
    for extra in probe_extras():
        lines.append(f"{extra.name:14}{extra.found or 'no':14}{extra.enables}")
        if not extra.found:
            lines.append(f"{'':28}{extra.install or NEEDS_GPU}")
    return lines
