"""A bench as files: JSON for machines, CSV, Markdown, and one HTML page that needs no network."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract.errors import UserError, first_line
from ..contract.files import write_atomically
from ..contract.log import log
from .gain import gain_of, speed_up
from .page import html_page
from .report import report_lines
from .result import Bench, Row
from .text import free_name

UNFINISHED = "unfinished"
"""Name of the report of a bench that goes on."""


class GrowingReport:
    """A report that is there row by row: what is measured stays where the bench is killed.

    folder: None writes none.
    """

    def __init__(self, folder: Path | None, command: str) -> None:
        self._folder, self._command = folder, command

    def write(self, bench: Bench) -> None:
        """Of a bench that goes on, whatever happens to a report that is not the last."""
        if self._folder is not None:
            try:
                write_report(bench, self._folder, self._command, UNFINISHED)
            except UserError as error:
                log.warning("%s", error.reason)
            except Exception as error:  # noqa: BLE001  the rows to come are worth more
                log.warning("no report of the rows so far: %s", first_line(error))

    def finish(self, bench: Bench) -> list[Path]:
        """Write the whole one, and return its paths. Raises UserError as write_report does."""
        if self._folder is None:
            return []
        paths = write_report(bench, self._folder, self._command)
        for path in paths:
            path.with_name(UNFINISHED + path.suffix).unlink(missing_ok=True)
        return paths


def write_report(bench: Bench, folder: Path, command: str, name: str = "") -> list[Path]:
    """Write JSON, CSV, Markdown and HTML; return their paths.

    name: without suffix; what has it is replaced. Else the names carry device, precisions,
    versions, input size and batch, and a number where a report of that name is there. Raises
    UserError when they cannot be written.
    """
    content = {"command": command, **bench.to_dict()}
    texts: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(content, indent=2) + "\n",
        "csv": lambda: csv_text(bench),
        "md": lambda: "\n".join(report_lines(bench, command)) + "\n",
        "html": lambda: html_page(bench, command),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.stem for path in folder.iterdir() if path.suffix[1:] in texts}
        stem = name or free_name(report_stem(bench), names.__contains__)
        paths = {suffix: folder / f"{stem}.{suffix}" for suffix in texts}
        for suffix, text in texts.items():  # each is safe before the next, as a plot, can fail
            write_atomically(paths[suffix], text().encode())
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}", seen=error) from error
    return list(paths.values())


def report_stem(bench: Bench) -> str:
    """bench_DEVICE_PRECISIONS_VERSIONS_INPUT_BATCH."""
    results = [row.result for row in bench.rows if row.result]
    precisions = "+".join(sorted({result.precision for result in results})) or "none"
    words = " ".join(result.label for result in results).lower().split()
    versions = [
        f"{name}-{version.split('+')[0]}"
        for name, version in bench.versions.items()
        if version and (name in words or name == "torch")
    ]
    height, width = results[0].input_size if results else (0, 0)
    batches = "+".join(str(b) for b in sorted({result.batch for result in results}))
    device = re.sub(r"[^a-z0-9]+", "-", _device(bench).lower()).strip("-")
    parts = ["bench", device, precisions, *versions, f"{height}x{width}", f"batch-{batches or 0}"]
    return "_".join(parts)


def _device(bench: Bench) -> str:
    """The GPU where rows ran on one, else the processor."""
    if not bench.on_gpu:
        return bench.machine["processor"]
    return re.sub(r"^\d+ × ", "", bench.machine.get("gpu", "")) or "cuda"


def csv_text(bench: Bench) -> str:
    """A line for each row, plain numbers; empty cells where there is none."""
    lines = [_csv_row(row, bench) for row in bench.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _csv_row(row: Row, bench: Bench) -> dict[str, Any]:
    result, judgement = row.result, row.judgement
    gain = gain_of(row, bench)
    told = gain is not None and not gain.reason
    return {
        "name": row.name,
        "label": result and result.label,
        "precision": result and result.precision,
        "batch": result and result.batch,
        "engine_only": round(result.engine_rate, 4) if result and result.engine_only else None,
        "with_copies": result and round(statistics.median(result.with_copies), 4),
        "files_to_files": result and round(result.files_rate, 4),
        "pass_images": result and (result.pass_images or None),
        "of_engine": statistics.median(result.of_engine) if result and result.of_engine else None,
        "speed_up": speed_up(row, bench),
        "speed_up_low": gain.low if gain and told else None,
        "speed_up_high": gain.high if gain and told else None,
        "agreement": row.agreement,
        "foreground_miou": judgement and judgement.miou,
        "p50_ms": result and result.latency.p50,
        "p95_ms": result and result.latency.p95,
        "p99_ms": result and result.latency.p99,
        "flops_per_s": result and result.achieved,
        "of_peak": result and bench.peak_share(result).value,
        "of_matrix_products": result and bench.matrix_share(result),
        "build_s": row.build_seconds,
        "open_s": result and result.open_seconds,
        "first_batch_s": result and result.first_seconds,
        "model_bytes": result and (result.model_bytes or None),
        "host_bytes": result and result.host_bytes,
        "device_bytes": result and result.device_bytes,
        "trusted": row.trusted,
        "reason": row.reason or (gain.reason if gain else ""),
    }
