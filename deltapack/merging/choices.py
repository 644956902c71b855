"""The names that a merge takes, as data that costs nothing to import: for help, and for the completion of shells."""

from __future__ import annotations

__all__ = ["METHOD_NAMES", "SEMANTICS_NAMES"]

METHOD_NAMES = (
    "linear",
    "average",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "ram",
    "ramplus_tl",
    "model_stock",
)
"""The merge methods, in the order of `deltapack.merging.methods.table.METHODS`."""
SEMANTICS_NAMES = ("mergekit", "paper", "peft")
"""Whose formula, where tools differ."""
