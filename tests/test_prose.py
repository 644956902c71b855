"""Pages that people read: lines that fit a screen."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")
PAGES = [*(ROOT / f"{name}.md" for name in NAMES), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "spec").rglob("*.md"))]
WIDEST = 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_a_screen(page: Path) -> None:
    """Rows of tables cannot be broken, so they may be longer."""
    long = [line for line in page.read_text("utf-8").splitlines() if len(line) > WIDEST and not line.startswith("|")]
    assert not long
