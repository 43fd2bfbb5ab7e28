"""README's bench tables, generated from the committed results.

python -m unetrt.bench.readme README.md README.zh-CN.md [--results bench/results] [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import write_atomically
from .compare import read_report
from .gain import gain_of
from .job import RowResult, result_from_dict
from .report import copies_text
from .result import Bench, Row
from .text import markdown_table, rates_text

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
LINKED = {"zen4"}
"""Folders of reports that README has a link to in place of their tables."""
HEADS = {
    "en": ("engine", "engine only, images/s", "files to files, images/s", "speed-up", "agreement"),
    "zh": ("引擎", "仅引擎，图/秒", "文件到文件，图/秒", "加速比", "一致率"),
}
COPIES = {"en": "engine with copies, images/s", "zh": "引擎含拷贝，图/秒"}
"""A column of its own where a row ran on a GPU; on a CPU there are no copies."""
TITLES = {
    "en": "{images} images, network input {height}×{width}, {processor}; `{command}`",
    "zh": "{images} 张图像，网络输入 {height}×{width}，{processor}；`{command}`",
}


def readme_block(results: Path, language: str) -> str:
    """The tables of the `bench_*.json` below `results` but for LINKED, in order of their paths."""
    paths = sorted(results.rglob("bench_*.json"))
    shown = [path for path in paths if LINKED.isdisjoint(path.relative_to(results).parts)]
    reports = [read_report(path) for path in shown]
    return "\n\n".join(_section(report, language) for report in reports)


def readme_with_block(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced. Raises UserError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError("no markers for the bench", expected=f"{BEGIN} and {END}, a line each")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def language_of(path: Path) -> str:
    return "zh" if ".zh" in path.name else "en"


def _section(report: dict[str, Any], language: str) -> str:
    bench = _bench(report)
    rows = [row for row in bench.rows if row.result]
    height, width = rows[0].result.input_size if rows and rows[0].result else (0, 0)
    title = TITLES[language].format(
        images=report["images"],
        height=height,
        width=width,
        processor=bench.machine["gpu" if bench.on_gpu else "processor"],
        command=report["command"],
    )
    cells = [HEADS[language], *(_cells(row, row.result, bench) for row in rows if row.result)]
    if bench.on_gpu:
        copies = [COPIES[language], *(copies_text(row.result) for row in rows if row.result)]
        cells = [(*line[:2], more, *line[2:]) for line, more in zip(cells, copies, strict=True)]
    return "\n".join([title, "", *markdown_table(cells)])


def _bench(report: dict[str, Any]) -> Bench:
    """As much of the bench as its tables need."""
    rows = [
        Row(
            name=row["name"],
            result=result_from_dict(row["result"]) if row["result"] else None,
            agreement=row["agreement"],
            trusted=row["trusted"],
            reason=row["reason"],
        )
        for row in report["rows"]
    ]
    machine = report["machine"]
    return Bench(rows=tuple(rows), images=report["images"], machine=machine, versions={})


def _cells(row: Row, result: RowResult, bench: Bench) -> tuple[str, ...]:
    """As the bench's own table; a row without trusted masks has no speed-up."""
    gain = gain_of(row, bench)
    return (
        row.name,
        rates_text(result.engine_only) if result.engine_only else "–",
        rates_text(result.files_to_files),
        "–" if gain is None or gain.reason else gain.text,
        "–" if row.agreement is None else f"{row.agreement:.4%}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0: written, or as it should be; 1: --check found a file that differs; 2: no markers."""
    parser = argparse.ArgumentParser(description="Write the bench tables into README files.")
    parser.add_argument("files", type=Path, nargs="+", metavar="README")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), metavar="DIR")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when they differ")
    args = parser.parse_args(argv)
    try:
        changed = [path for path in args.files if _update(path, args.results, args.check)]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.status
    sys.stdout.write("".join(f"{path}\n" for path in changed))
    return 1 if changed and args.check else 0


def _update(path: Path, results: Path, check: bool) -> bool:
    """Whether the file differs from the results; written unless `check`."""
    text = path.read_text(encoding="utf-8")
    wanted = readme_with_block(text, readme_block(results, language_of(path)))
    if wanted != text and not check:
        write_atomically(path, wanted.encode())
    return wanted != text


if __name__ == "__main__":
    sys.exit(main())
