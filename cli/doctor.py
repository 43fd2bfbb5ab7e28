"""unetrt doctor: what this machine can run, and how to get what is missing."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    del args
    from ..engine.probe import choose_backend, default_precision, describe_machine, probe_backends

    lines = [f"{name:12}{text}" for name, text in describe_machine().items()]
    lines.append(f"\n{'backend':14}{'builds':8}{'runs':6}found")
    for status in probe_backends():
        builds, runs = ("yes" if flag else "no" for flag in (status.builds, status.runs))
        lines.append(f"{status.name:14}{builds:8}{runs:6}{status.detail}")
        if status.install:
            lines.append(f"{'':28}{status.install}")
    sys.stdout.write("\n".join(lines) + "\n")
    backend, _ = choose_backend()
    sys.stdout.write(f"\nunetrt build takes {backend} {default_precision(backend)} here\n")
    return 0
