"""Merges of two and three packs at each size, beside the same merges of the fine-tunes themselves.

    python -m benchmarks.fidelity.merges

Part of the study, with models of `benchmarks.fidelity.models`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import deltapack
from benchmarks.command import main
from benchmarks.fidelity.measuring import Measures, Subject, language_subject
from benchmarks.fidelity.models import weights_of
from benchmarks.results import Cell, Section, Table, progress
from deltapack import Budget, Recipe

__all__ = ["measure", "merge_table"]

FAMILY = "gpt"
TUNES = ("perl", "bible", "sorting")
WEIGHT = 0.6
"""Of each fine-tune, in the sum of the differences."""
HEADERS = (
    "merged",
    "packs",
    "bits/weight of all packs",
    *(f"retention, {tune}" for tune in TUNES),
    *(f"KL, {tune}" for tune in TUNES),
    "exact match",
)
TARGETS = (1.0, 0.5, 0.25, 0.1)
State = Mapping[str, Tensor]


def measure(quick: bool) -> Section:
    """Return the section of merges."""
    notes = ("Every fine-tune is judged as in the study; the fine-tunes' own sum is what merges of packs are to come near to.",)
    table = merge_table(TARGETS[-1:] if quick else TARGETS, 4 if quick else 32)
    return Section("Fidelity merges", "python -m benchmarks.fidelity.merges", (table,), notes)


def merge_table(targets: Sequence[float], windows: int) -> Table:
    """Return retention, divergence from each single fine-tune and exact match of merges, dense and of packs."""
    subjects = [language_subject(FAMILY, tune, windows) for tune in TUNES]
    rows = [row for count in (2, 3) for row in _rows(subjects[:count], subjects, targets)]
    caption = f"Sums of the differences of fine-tunes of `{FAMILY}`, each times {WEIGHT}, and the same of packs"
    return Table("merges", caption, HEADERS, tuple(rows))


def _rows(merged: Sequence[Subject], judges: Sequence[Subject], targets: Sequence[float]) -> Iterator[tuple[Cell, ...]]:
    name = " + ".join(subject.name.removeprefix(f"{FAMILY} ") for subject in merged)
    yield name, "none: fine-tunes", None, *_judged(_dense(merged), judges)
    recipes = {f"{target:g} bits": Recipe(budget=Budget(bits=target)) for target in targets} | {"DARE 0.9": Recipe(drop_rate=0.9)}
    for label, recipe in recipes.items():
        progress(f"merge of {name}, {label}")
        with TemporaryDirectory() as scratch:
            bits, state = _of_packs(merged, recipe, Path(scratch))
            yield name, label, bits, *_judged(state, judges)


def _dense(merged: Sequence[Subject]) -> State:
    base = merged[0].states[0]
    return {name: tensor + sum(WEIGHT * (subject.states[1][name] - tensor) for subject in merged) for name, tensor in base.items()}


def _of_packs(merged: Sequence[Subject], recipe: Recipe, folder: Path) -> tuple[float, State]:
    packs = [folder / f"{number}.dpk" for number in range(len(merged))]
    for subject, pack in zip(merged, packs, strict=True):
        deltapack.compress(subject.base, subject.tuned, pack, recipe=recipe)
    deltapack.merge(merged[0].base, packs, folder / "merged", weights=[WEIGHT] * len(packs))
    weights = sum(tensor.numel() for tensor in merged[0].states[1].values())
    return 8 * sum(pack.stat().st_size for pack in packs) / weights, weights_of(folder / "merged")


@torch.inference_mode()
def _judged(state: State, judges: Sequence[Subject]) -> tuple[Cell, ...]:
    found: list[Measures] = [judge.measure(state) for judge in judges]
    columns = [measures[name] for name in ("retention", "kl") for measures in found]
    return *columns, found[-1].get("exact match")


if __name__ == "__main__":
    sys.exit(main(measure))
