"""What a run of the demo found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOMAINS", "DemoReport", "Row"]

DOMAINS = ("code", "prose")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What the line is about, as a path in the demo's folder.
        step: `"base"`, `"fine-tune"`, `"pack"` or `"merge"`.
        file_bytes: Size of the weights or of the pack; 0 for a merge, which is made of packs.
        loss: Held-out bits per byte of the model, by domain: all that were measured.
        retention: (base - model) / (base - fine-tune), by domain; empty where there is nothing to retain.
    """

    name: str
    step: str
    file_bytes: int
    loss: Mapping[str, float]
    retention: Mapping[str, float]


@dataclass(frozen=True)
class DemoReport:
    """What `run_demo` did.

    Attributes:
        folder: Where the files are.
        rows: The table, in order.
        parameters: Number of parameters of the model.
        merge_weight: Weight of each pack in the merge.
        merged: The packs that were merged, as paths in the folder.
        train_seconds: Wall time of reading the texts and training.
        pack_seconds: Wall time of compressing, restoring and merging.
        measure_seconds: Wall time of measuring losses.
    """

    folder: Path
    rows: tuple[Row, ...]
    parameters: int
    merge_weight: float
    merged: tuple[str, ...]
    train_seconds: float
    pack_seconds: float
    measure_seconds: float
