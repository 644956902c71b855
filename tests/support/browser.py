"""Pages in a real browser without a window: Debian's chromium, if it is installed."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REASON = "!!! NO CHROMIUM ON THIS MACHINE: pages are not looked at; `apt-get install chromium` !!!"
_MEASURE = """<script>
const overflow = [...document.querySelectorAll("svg text, svg rect, svg circle")].filter(mark => {
  const own = mark.getBoundingClientRect(), box = mark.ownerSVGElement.getBoundingClientRect();
  return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
}).map(mark => mark.textContent);
const found = {inner: innerWidth, scroll: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  charts: [...document.querySelectorAll("svg")].map(svg => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]),
  marks: document.querySelectorAll("svg rect, svg circle").length, overflow,
  hosts: [...new Set(performance.getEntriesByType("resource").map(entry => new URL(entry.name).host))],
  requests: performance.getEntriesByType("resource").length, title: document.title, text: document.body.innerText.length};
const shown = document.createElement("pre"); shown.id = "measured"; shown.textContent = JSON.stringify(found); document.body.append(shown);
</script>"""


@dataclass(frozen=True)
class Seen:
    """A page as a browser shows it: what a script measured, what it said on the console, its picture's size, and the bytes of that."""

    measured: dict[str, Any]
    console: list[str]
    size: tuple[int, int]
    picture_bytes: int


def look_at(page: Path, folder: Path, width: int = 1280, height: int = 1600, *, address: str | None = None) -> Seen:
    """Open a page twice: as it is, for picture and console, and with a script at its end that measures it.

    With an address both are opened there: a page that needs files beside it lies in `folder`, and a server gives what is in that.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(REASON)
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
        *("--disable-background-networking", "--enable-logging=stderr", "--v=0", f"--window-size={width},{height}"),
        *("--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}"),
    ]
    picture = folder / "page.png"
    shown = _run([program, *options, f"--screenshot={picture}", f"{address}/{page.name}" if address else page.resolve().as_uri()])
    measuring = folder / "measured.html"
    measuring.write_text(page.read_text("utf-8").replace("</body>", f"{_MEASURE}</body>"), "utf-8")
    dumped = _run([program, *options, "--dump-dom", f"{address}/{measuring.name}" if address else measuring.resolve().as_uri()]).stdout
    found = re.search(r'<pre id="measured">(.*?)</pre>', dumped, re.S)
    assert found, dumped[-2000:]
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    png = picture.read_bytes()
    return Seen(json.loads(_unescaped(found[1])), console, struct.unpack(">II", png[16:24]), len(png))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
