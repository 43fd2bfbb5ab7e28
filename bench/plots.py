"""The report's pictures as SVG text: no file, no network, no window."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from typing import Any

from .gain import speed_up
from .result import Bench

INK, PALE, WARN = "#3580ad", "#a9d6e5", "#d3213a"
"""Trusted numbers, their companions, and rows without a speed-up."""
TEXT = "#010203"
"""Stands for the page's own text colour, light or dark."""
COPIES = "with-copies"
"""The id of a mark at engine with copies, which a CPU has none of."""
LONGEST = 36
"""Characters of a row's name."""


def rates_svg(bench: Bench) -> str:
    """Images a second of every row: files to files, engine only behind it, a mark for copies."""
    rows = [(row, row.result) for row in bench.rows if row.result]
    figure, axis = _figure(len(rows), "images/s")
    for place, (row, result) in enumerate(rows):
        colour = INK if row.trusted else WARN
        if result.engine_only:
            axis.barh(place, result.engine_rate, height=0.8, color=PALE)
        axis.barh(place, result.files_rate, height=0.45, color=colour)
        if result.on_gpu:
            copies = statistics.median(result.with_copies)
            axis.plot([copies], [place], "|", color=TEXT, markersize=16, gid=COPIES)
    _name_rows(axis, [row.name for row, _ in rows])
    return _svg(figure)


def latency_svg(bench: Bench) -> str:
    """p50 to p99 of one batch in flight, a row each."""
    from matplotlib.ticker import LogLocator

    rows = [(row.name, row.result.latency) for row in bench.rows if row.result]
    figure, axis = _figure(len(rows), "ms, one batch in flight")
    for place, (_, latency) in enumerate(rows):
        axis.plot([latency.p50, latency.p99], [place, place], color=PALE, linewidth=5)
        axis.plot([latency.p50], [place], "o", color=INK)
        axis.plot([latency.p95, latency.p99], [place, place], "|", color=INK, markersize=10)
    _name_rows(axis, [name for name, _ in rows])
    axis.set_xscale("log", subs=[])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    return _svg(figure)


def agreement_svg(bench: Bench) -> str:
    """Share of pixels that differ from fp32 PyTorch's, logarithmic."""
    rows = [(row, row.agreement) for row in bench.rows if row.agreement is not None]
    figure, axis = _figure(len(rows), "share of pixels that differ")
    for place, (row, agreement) in enumerate(rows):
        differ = max(1 - agreement, 1e-6)
        axis.plot([differ], [place], "o", color=INK if row.trusted else WARN)
    _name_rows(axis, [row.name for row, _ in rows])
    axis.set_xscale("log")
    axis.set_xlim(5e-7, 1)
    return _svg(figure)


def waterfall_svg(bench: Bench) -> str:
    """Speed-up over the reference loop, step by step; rows without one are left out."""
    gains = [(row.name, gain) for row in bench.rows if (gain := speed_up(row, bench))]
    figure, axis = _figure(len(gains), "times the reference loop, files to files")
    before = 0.0
    for place, (_, gain) in enumerate(gains):
        axis.barh(place, gain, color=PALE)
        axis.barh(place, gain - before, left=before, height=0.45, color=INK)
        end = (max(gain, before), place)
        place_text = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{gain:.2f}×", end, color=TEXT, **place_text)
        before = gain
    _name_rows(axis, [name for name, _ in gains])
    axis.set_xlim(0, 1.15 * max((gain for _, gain in gains), default=1))
    return _svg(figure)


def _figure(rows: int, label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * rows + 0.9), layout="constrained")
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    axis.patch.set_alpha(0)
    axis.set_xlabel(label, color=TEXT)
    axis.tick_params(which="both", colors=TEXT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(TEXT)
    return figure, axis


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.invert_yaxis()


def _short(name: str) -> str:
    """The end of a long path tells more than its beginning."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _svg(figure: Any) -> str:
    """The figure as an <svg> element: text as text, the same bytes for the same numbers."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unetrt"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    # The prologue names a DTD on the network and does not belong inside a page.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(TEXT, "currentColor")
