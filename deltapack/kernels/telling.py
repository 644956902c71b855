"""What is told of loops that serve slower than they might."""

from __future__ import annotations

__all__ = ["LoopsWarning"]


class LoopsWarning(RuntimeWarning):
    """Results are the same and come later than they might."""
