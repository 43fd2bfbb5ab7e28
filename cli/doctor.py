"""unetrt doctor: what this machine can run, and how to get what is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.probe import BackendStatus

TRT = "unetrt[trt]"
NEEDS_GPU = "of no use without an NVIDIA GPU"
"""In place of a command whose installation would fail here."""

INDENT = " " * 28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    """Status 0 where any backend runs: containers take it for their health."""
    del args
    from ..engine.extras import describe_gpus
    from ..engine.probe import describe_machine, probe_backends

    gpus, statuses = describe_gpus(), probe_backends()
    lines = [f"{name:12}{text}" for name, text in {**describe_machine(), **gpus}.items()]
    lines += ["", *_backend_lines(statuses, gpu=bool(gpus)), "", *_extra_lines()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(f"\n{_verdict(statuses)}\n")
    return 0


def _verdict(statuses: Sequence[BackendStatus]) -> str:
    """What unetrt does here. Raises UserError where nothing runs."""
    from ..contract.modules import INSTALL
    from ..engine.probe import choose_backend, default_precision

    runs = [status.name for status in statuses if status.runs]
    if runs and not any(status.builds and status.runs for status in statuses):
        return (
            f"unetrt runs checkpoints by {', '.join(runs)} here; "
            f"nothing builds an engine that runs: {INSTALL['openvino']}"
        )
    backend, _ = choose_backend(statuses)
    return f"unetrt build takes {backend} {default_precision(backend)} here"


def _backend_lines(statuses: Sequence[BackendStatus], gpu: bool) -> list[str]:
    from ..engine.probe import USES

    width = max(map(len, USES.values())) + 2
    lines = [f"{'backend':14}{'builds':8}{'runs':6}{'for':{width}}found"]
    for status in statuses:
        builds, runs = ("yes" if flag else "no" for flag in (status.builds, status.runs))
        use = USES.get(status.name, "")
        lines.append(f"{status.name:14}{builds:8}{runs:6}{use:{width}}{status.detail}")
        if status.install:
            useless = TRT in status.install and not gpu
            lines.append(INDENT + (NEEDS_GPU if useless else status.install))
    return lines


def _extra_lines() -> list[str]:
    """What the backends do without, and the command that brings what is missing."""
    from ..engine.extras import probe_extras

    extras = probe_extras()
    width = max(len(extra.enables) for extra in extras) + 2
    lines = [f"{'also':14}{'for':{width}}found"]
    for extra in extras:
        lines.append(f"{extra.name:14}{extra.enables:{width}}{extra.found}")
        if not extra.works:
            lines.append(INDENT + (extra.install or NEEDS_GPU))
    return lines
