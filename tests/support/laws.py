"""How many examples hypothesis tries of a law."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

__all__ = ["SHARE", "USUAL", "examples"]

USUAL = 100
SHARE = float(os.environ.get("DELTAPACK_EXAMPLES", "0.4"))
"""Share of the numbers that tests name which is tried; a run that has the time tries all of them, or ten times as many."""


def examples(count: int, **options: Any) -> settings:
    """Return settings of a law that is tried with `count` examples where there is time for all of them."""
    return settings(max_examples=max(1, round(count * SHARE)), **options)
