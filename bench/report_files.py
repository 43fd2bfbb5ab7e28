"""A bench as files: JSON for machines, CSV, Markdown, and one HTML page that needs no network."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import write_atomically
from .plots import agreement_svg, latency_svg, rates_svg, samples_svg, waterfall_svg
from .report import context_lines, report_lines, speed_up, stage_lines, sweep_lines, table_lines
from .report import detail_lines as details
from .result import Bench, Row

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;
color:#1b1b1b}table{border-collapse:collapse;font-size:.9em;margin:1rem 0}
th,td{border-bottom:1px solid #ccc;padding:.3em .7em;text-align:left}svg{max-width:100%;height:auto}
code{background:#f0f0f0;padding:.1em .3em}h2{margin-top:2.2rem}.warning{color:#c1121f}"""


def write_report(bench: Bench, folder: Path, command: str) -> list[Path]:
    """Write JSON, Markdown, CSV and HTML; return their paths.

    Their names carry device, precisions, versions, input size and batch.
    Raises UserError when they cannot be written.
    """
    stem = report_stem(bench)
    content = {"command": command, **bench.to_dict()}
    texts = {
        folder / f"{stem}.json": json.dumps(content, indent=2) + "\n",
        folder / f"{stem}.md": "\n".join(report_lines(bench, command)) + "\n",
        folder / f"{stem}.csv": csv_text(bench),
        folder / f"{stem}.html": html_page(bench, command),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}", seen=error) from error
    return list(texts)


def report_stem(bench: Bench) -> str:
    """bench_DEVICE_PRECISIONS_VERSIONS_INPUT_BATCH."""
    results = [row.result for row in bench.rows if row.result]
    precisions = "+".join(sorted({result.precision for result in results})) or "none"
    labels = " ".join(result.label for result in results).lower()
    versions = [
        f"{name}-{version.split('+')[0]}"
        for name, version in bench.versions.items()
        if version and (name in labels or name == "torch")
    ]
    height, width = results[0].input_size if results else (0, 0)
    batches = "+".join(str(b) for b in sorted({result.batch for result in results}))
    device = re.sub(r"[^a-z0-9]+", "-", bench.machine["processor"].lower()).strip("-")
    parts = ["bench", device, precisions, *versions, f"{height}x{width}", f"batch-{batches or 0}"]
    return "_".join(parts)


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
    peak = bench.peaks.of(result.precision) if result else None
    return {
        "name": row.name,
        "label": result and result.label,
        "precision": result and result.precision,
        "batch": result and result.batch,
        "engine_only": result and result.engine_only and round(result.engine_rate, 4),
        "files_to_files": result and round(result.files_rate, 4),
        "speed_up": speed_up(row, bench.rows[0]),
        "agreement": row.agreement,
        "foreground_miou": judgement and judgement.miou,
        "p50_ms": result and result.latency.p50,
        "p95_ms": result and result.latency.p95,
        "p99_ms": result and result.latency.p99,
        "flops_per_s": result and result.achieved,
        "of_peak": result.achieved / peak.ops if result and peak else None,
        "build_s": row.build_seconds,
        "open_s": result and result.open_seconds,
        "first_batch_s": result and result.first_seconds,
        "host_bytes": result and result.host_bytes,
        "device_bytes": result and result.device_bytes,
        "trusted": row.trusted,
        "reason": row.reason,
    }


def html_page(bench: Bench, command: str) -> str:
    """One self-contained page: tables, and plots as inline SVG."""
    parts = [f"<p><code>{html.escape(command)}</code></p>", _html_lines(table_lines(bench))]
    if any(row.result for row in bench.rows):
        plots = (rates_svg, waterfall_svg, latency_svg, agreement_svg)
        parts += [f"<figure>{plot(bench)}</figure>" for plot in plots]
    if bench.samples is not None and bench.samples.panels:
        parts += ["<h2>Masks side by side</h2>", f"<figure>{samples_svg(bench.samples)}</figure>"]
    parts += ["<h2>Details</h2>", _html_lines(details(bench))]
    parts += ["<h2>Where the time goes</h2>", _html_lines(stage_lines(bench.rows))]
    if bench.sweep is not None:
        parts += ["<h2>Batches and slots</h2>", _html_lines(sweep_lines(bench.sweep))]
    parts += ["<h2>What was measured, and on what</h2>", _html_list(context_lines(bench))]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f"<title>unetrt bench</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>unetrt bench</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_lines(lines: list[str]) -> str:
    """Our own Markdown tables as HTML tables, other lines as paragraphs."""
    out: list[str] = []
    table: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        out += [_html_table(table)] if table else []
        table = []
        out += [f"<p>{html.escape(line)}</p>"] if line else []
    return "\n".join(out)


def _html_table(lines: list[str]) -> str:
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    text = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>\n<thead><tr>{text}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _html_list(lines: list[str]) -> str:
    items = [
        f"<li{' class=warning' * line.startswith('warning')}>{html.escape(line)}</li>"
        for line in lines
    ]
    return f"<ul>\n{chr(10).join(items)}\n</ul>"
