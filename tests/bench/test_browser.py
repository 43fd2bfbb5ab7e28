"""The report's page in a real browser without a window.

Needs Chromium: `apt-get install chromium`, or Google Chrome.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser import answer_of_page
from unetrt.bench.page import html_page
from unetrt.bench.result import Bench
from unetrt.bench.sweep import Sweep

pytestmark = pytest.mark.slow

PROBE = """<pre id="probe"></pre><script>
addEventListener("load", () => {
  const images = [...document.images];
  document.getElementById("probe").textContent = JSON.stringify({
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    images: images.length,
    decoded: images.filter((i) => i.complete && i.naturalWidth > 0).length,
    named: images.filter((i) => i.alt).length,
    requests: performance.getEntriesByType("resource").map((r) => r.name)
      .filter((name) => !name.startsWith("data:")),
    ink: getComputedStyle(document.body).color,
    page: getComputedStyle(document.body).backgroundColor,
    axis: getComputedStyle(document.querySelector("svg text") || document.body).fill,
  });
});
</script></body>"""
"""Goes into a copy of the page, which has no script of its own."""


def probe_page(
    text: str, folder: Path, width: int, dark: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """What the page looks like to the browser, and what its console says."""
    flags = [f"--window-size={width},900"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    return answer_of_page(text.replace("</body>", PROBE), folder, *flags)


@pytest.fixture
def long_bench(bench: Bench, sweep: Sweep) -> Bench:
    """With names that nobody chose to be short."""
    long = "/data/engines/" + "a-name-without-a-space/" * 6
    reason = replace(bench.rows[3], name=long, reason="no such file: " + long)
    named = replace(bench.rows[1], name=long + "openvino")
    rows = (bench.rows[0], named, bench.rows[2], reason)
    return replace(bench, rows=rows, sweep=replace(sweep, model=long), peers=())


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_asks_for_nothing_and_shows_all_images(
    width: int, long_bench: Bench, tmp_path: Path
) -> None:
    text = html_page(long_bench, "unetrt bench " + "x" * 300)
    seen, console = probe_page(text, tmp_path, width)
    assert console == []
    assert seen["requests"] == []
    assert seen["content"] <= seen["width"]
    assert seen["width"] <= max(width, 500), "a window that is no wider than was asked for"
    assert seen["images"] == seen["decoded"] == seen["named"] == 1


def test_the_page_is_dark_where_the_reader_wants_it(long_bench: Bench, tmp_path: Path) -> None:
    text = html_page(long_bench, "unetrt bench")
    light, _ = probe_page(text, tmp_path, 1280)
    dark, _ = probe_page(text, tmp_path, 1280, dark=True)
    assert light["page"] == dark["page"].replace("22, 24, 28", "255, 255, 255")
    assert light["page"] != dark["page"]
    for seen in (light, dark):
        assert seen["axis"] == seen["ink"], "the plots' text takes the page's colour"


def test_a_page_that_is_wrong_is_seen(tmp_path: Path) -> None:
    text = (
        '<html><body><div style="width:3000px">wide</div><img src="data:image/png;base64,AAAA">'
        '<img alt="a" src="http://unetrt.invalid/a.png">'
        "<script>console.error('wrong')</script></body></html>"
    )
    seen, console = probe_page(text, tmp_path, 1280)
    assert seen["content"] > seen["width"]
    assert (seen["images"], seen["decoded"], seen["named"]) == (2, 0, 1)
    assert seen["requests"] == ["http://unetrt.invalid/a.png"]
    assert any("wrong" in line for line in console)
