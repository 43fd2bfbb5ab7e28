"""A real browser without a window: Chromium (`apt-get install chromium`) or Google Chrome."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def require_browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no browser: `apt-get install chromium` brings one")
    return found


def answer_of_page(text: str, folder: Path, *flags: str) -> tuple[Any, list[str]]:
    """What a page's script writes as JSON into <pre id="probe">, and what the console says."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    command = [
        require_browser(),
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *("--virtual-time-budget=5000", "--dump-dom", *flags, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
