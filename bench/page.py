"""A bench as one HTML page: no script, no network, readable on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Callable, Sequence

from ..contract.types import U8
from .class_report import class_lines
from .layer_report import layer_lines
from .plots import agreement_svg, latency_svg, rates_svg, waterfall_svg
from .report import context_lines, detail_lines, stage_lines, sweep_lines, table_lines
from .result import Bench
from .samples import Samples

STYLE = """:root{color-scheme:light dark;--ink:#1b1b1b;--page:#fff;--line:#d0d0d0;--code:#f0f0f0;
--warn:#b3001b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--page:#16181c;--line:#3d4148;--code:#262a31;
--warn:#ff7b86}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:0 auto;padding:1rem;
color:var(--ink);background:var(--page);overflow-wrap:anywhere}
h1{margin:.5rem 0}h2{margin-top:2.5rem}
code{background:var(--code);padding:.2em .4em;border-radius:3px;-webkit-box-decoration-break:clone;
box-decoration-break:clone}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.88em;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.35em .7em;text-align:left;vertical-align:top;
overflow-wrap:normal}
th{vertical-align:bottom}
td:first-child{min-width:11rem;max-width:26rem;overflow-wrap:anywhere}
figure{margin:1.5rem 0}figcaption{font-size:.88em;margin-bottom:.3rem}
.plot svg{display:block;width:100%;min-width:34rem;max-width:52rem;height:auto}
.masks{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.7rem;
margin:0 0 1.5rem;padding:0 0 1.5rem;border-bottom:1px solid var(--line)}
.masks figure{margin:0}.masks img{width:100%;height:auto;image-rendering:pixelated;display:block}
.masks figcaption{font-size:.78em}
li{margin:.2rem 0}.warning{color:var(--warn)}"""

PLOTS: tuple[tuple[Callable[[Bench], str], str], ...] = (
    (
        rates_svg,
        "Throughput: files to files (dark; red: masks not trusted), engine only (pale), engine "
        "with copies (mark; on a GPU)",
    ),
    (waterfall_svg, "Waterfall: the dark part is the step from the row above"),
    (latency_svg, "Latency of one batch in flight: p50 (dot), p95 and p99 (marks)"),
    (agreement_svg, "Pixels that differ from fp32 PyTorch's: left is better; 1e-6 stands for none"),
)


def html_page(bench: Bench, command: str) -> str:
    """Tables, plots as inline SVG, masks as inline PNG."""
    body = "\n".join([f"<p><code>{html.escape(command)}</code></p>", *_sections(bench)])
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>unetrt bench</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>unetrt bench</h1>\n{body}\n</body>\n</html>\n"
    )


def _sections(bench: Bench) -> list[str]:
    parts = [_html_lines(table_lines(bench))]
    if any(row.result for row in bench.rows):
        parts += [_plot(plot(bench), caption) for plot, caption in PLOTS]
    if bench.samples is not None and bench.samples.panels:
        parts += ["<h2>Masks side by side</h2>", *_masks(bench.samples)]
    titled = {
        "Details": detail_lines(bench),
        "Class by class": class_lines(bench.rows),
        "Where the time goes": stage_lines(bench.rows),
        "Layer by layer": layer_lines(bench.rows, bench.peaks),
        "Batches, slots and sizes": sweep_lines(bench.sweep) if bench.sweep else [],
        "Under the bound": bench.slo.lines if bench.slo else [],
    }
    for title, lines in titled.items():
        parts += [f"<h2>{title}</h2>", _html_lines(lines)] if lines else []
    return [*parts, "<h2>What was measured, and on what</h2>", _html_list(context_lines(bench))]


def _plot(svg: str, caption: str) -> str:
    label = f'<svg role="img" aria-label="{html.escape(caption)}" '
    inner = svg.replace("<svg ", label, 1)
    caption = html.escape(caption)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<div class="scroll plot" tabindex="0" role="group" aria-label="{caption}">{inner}</div>'
        "</figure>"
    )


def _masks(samples: Samples) -> list[str]:
    """A grid an image: itself, the truth where it is known, every row's mask."""
    return [
        f'<div class="masks">{"".join(_picture(*panel, place) for panel in panels)}</div>'
        for place, panels in enumerate(samples.panels, start=1)
    ]


def _picture(title: str, picture: U8, place: int) -> str:
    title = html.escape(title)
    height, width = picture.shape[:2]
    kind = "picture" if title == "image" else "mask"
    return (
        f'<figure><img alt="{kind} {place}: {title}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{_png(picture)}"><figcaption>{title}</figcaption></figure>'
    )


def _png(picture: U8) -> str:
    import cv2

    done, data = cv2.imencode(".png", picture[..., ::-1])
    assert done
    return base64.b64encode(data.tobytes()).decode("ascii")


def _html_lines(lines: Sequence[str]) -> str:
    """Our own Markdown tables as HTML tables, other lines as paragraphs.

    The line of a model named `|e` begins as a table's does; a table's second line is its rule.
    """
    out: list[str] = []
    table: list[str] = []
    for line, after in itertools.pairwise([*lines, "", ""]):
        if line.startswith("|") and (table or after.startswith("|-")):
            table.append(line)
            continue
        out += [_html_table(table)] if table else []
        table = []
        out += [f"<p>{html.escape(line)}</p>"] if line else []
    return "\n".join(out)


def _html_table(lines: Sequence[str]) -> str:
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    text = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{html.escape(head[0])}">'
        f"<table>\n<thead><tr>{text}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _html_list(lines: Sequence[str]) -> str:
    items = [
        f"<li{' class=warning' * line.startswith('warning')}>{html.escape(line)}</li>"
        for line in lines
    ]
    return f"<ul>\n{chr(10).join(items)}\n</ul>"
