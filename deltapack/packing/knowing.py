"""What is known of the weights that a budget is for: their energy, their directions, the rows that moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deltapack.checkpoint import Checkpoint
from deltapack.format.digest import CHUNK
from deltapack.kernels.buffers import Buffers
from deltapack.packing.allocation import BOOST, NARROW, Kind, Known
from deltapack.packing.deltas import Delta, moved_rows, rows_at, sampled, squares_of_rows, squares_of_some_rows
from deltapack.packing.planning import DeltaPlan
from deltapack.packing.spectrum import Spectrum, spectrum_of
from deltapack.parallel import ordered_map

__all__ = ["RANK", "Surveyed", "heads_of", "is_vocabulary", "survey_weights"]

RANK = 8
"""Singular directions that are looked for."""
_LARGE = 8
"""A weight of at least this part of all is surveyed by all threads together."""
_SMALL, _ROWS = 4096, 2048
"""Elements below which no directions are looked for, and rows of a vocabulary that are looked at."""
_SEEN = 256
"""Rows by which directions are found, at least."""
_LONG, _TALL, _TALLER = 4096, 2, 8
"""Rows that a vocabulary has at least, and how many times more than columns: those by whose name it may be one, and others."""
_VOCABULARY = re.compile(r"(.*[./])?(\w*embed\w*|wte|lm_head|output|decoder|shared|vocab\w*|word\w*|tok\w*)([./]weight)?")
"""The last part of a name tells: `decoder` is the head of BERT, `decoder.layers.0.fc1` is none."""
_HEAD = re.compile(r"(.*[./])?(lm_head|embed_out|head|classifier|score)\.weight|output\.weight")
_TIED = re.compile(r"(.*[./])?(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in)\.weight")
_STILL, _FEW_MOVED = 0.1, 0.7
"""A row that moved less than this share of what energy sees has hardly moved; the share of rows that moved above which all are kept."""
_VOCABULARY_SHARE, _NEARLY_ALL_MOVED = 8, 0.85
"""Of the rows of a vocabulary one of so many is looked at first; all are, unless this share of these has moved."""


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A weight, and what is known of it.

    Attributes:
        plan: How it would be packed without a budget: its partner, its mask key.
        delta: Its difference to its partner.
        known: What allocation asks for.
        spectrum: Its singular directions, where there may be factors.
        squares: Sums of squares over its rows, where only some moved, `[rows] f64`.
        moved: Which did, `[rows] bool`; empty where all are kept.
    """

    plan: DeltaPlan
    delta: Delta
    known: Known
    spectrum: Spectrum | None = None
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    moved: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def is_vocabulary(name: str, rows: int, columns: int) -> bool:
    """Whether a weight has a row for each token of a vocabulary: an embedding, or a head; its name and its shape tell.

    >>> is_vocabulary("model.embed_tokens.weight", 32_000, 4096), is_vocabulary("mlp.up_proj.weight", 28_672, 8192)
    (True, False)
    """
    times = _TALL if _VOCABULARY.fullmatch(name) else _TALLER
    return rows >= max(_LONG, times * columns)


def heads_of(names: Iterable[str]) -> frozenset[str]:
    """Return the names of heads, or of the embeddings that serve as such where there is none.

    >>> sorted(heads_of(["wte.weight", "lm_head.weight"])), sorted(heads_of(["wte.weight", "h.0.mlp.weight"]))
    (['lm_head.weight'], ['wte.weight'])
    """
    names = list(names)
    heads = frozenset(name for name in names if _HEAD.fullmatch(name))
    return heads or frozenset(name for name in names if _TIED.fullmatch(name))


def survey_weights(
    base: Checkpoint, finetuned: Checkpoint, plans: Sequence[DeltaPlan], workers: int, done: Callable[[DeltaPlan], None] = lambda _: None
) -> dict[str, Surveyed]:
    """Find out what is to be known of weights: of large ones one after the other, by all threads.

    Args:
        base: The base checkpoint.
        finetuned: The fine-tuned checkpoint, whose names tell which weights are heads.
        plans: How they would be packed without a budget.
        workers: Threads.
        done: Called after each weight, in any order.

    Returns:
        By the names of the weights, in the order of the plans.
    """
    heads, buffers, found = heads_of(finetuned.tensors), Buffers(), dict[str, Surveyed]()

    def survey(plan: DeltaPlan, threads: int = 1) -> Surveyed:
        delta = Delta(base, finetuned, plan.tensor, plan.base, buffers)
        return _survey_weight(plan, delta, threads, BOOST if plan.tensor.name in heads else 1.0)

    most = max(CHUNK, sum(plan.common for plan in plans) // _LARGE)
    for plan in (plan for plan in plans if plan.common > most):
        found[plan.tensor.name] = survey(plan, workers)
        done(plan)
    rest = [plan for plan in plans if plan.common <= most]
    with closing(ordered_map(survey, rest, workers)) as results:
        for plan, surveyed in zip(rest, results, strict=True):
            found[plan.tensor.name] = surveyed
            done(plan)
    return {plan.tensor.name: found[plan.tensor.name] for plan in plans}


def _survey_weight(plan: DeltaPlan, delta: Delta, workers: int, boost: float) -> Surveyed:
    """Find out what is to be known of a weight; reads all of it once or twice.

    Args:
        plan: How it would be packed without a budget.
        delta: Its difference to its partner.
        workers: Threads.
        boost: Rates of the body that it gets if it is no wide vocabulary.
    """
    name, rows, columns = plan.tensor.name, delta.rows, delta.columns
    known = Known(name, rows, columns, "body", rows, 0.0, boost=boost)
    vocabulary = is_vocabulary(name, rows, columns)
    if vocabulary:
        squares = squares_of_some_rows(delta, _VOCABULARY_SHARE)
        if moved_rows(squares, _STILL).mean() < _NEARLY_ALL_MOVED:
            squares = squares_of_rows(delta, workers)
            moved = moved_rows(squares, _STILL)
            if np.isfinite(squares).all() and 0 < moved.sum() <= _FEW_MOVED * rows:
                return _touched(plan, delta, squares, moved)
    if min(rows, columns) < NARROW or delta.common < _SMALL:
        values = sampled(delta)
        energy = float(np.square(values, dtype=np.float64).sum()) * delta.common / max(1, len(values))
        return Surveyed(plan, delta, replace(known, energy=energy if np.isfinite(energy) else 0.0))
    spectrum = spectrum_of(delta.reader(), rows, columns, RANK, plan.key, share=max(1, rows // _SEEN), workers=workers)
    if spectrum is None:  # the entry says what is wrong with the difference
        return Surveyed(plan, delta, known)
    kind: Kind = "dense" if vocabulary else "body"
    boost = 1.0 if vocabulary else boost
    # Rows of a vocabulary differ too much for the few by which directions are found.
    energy = float(squares.mean()) * rows if vocabulary else spectrum.energy
    singular = tuple(float(value) ** 2 for value in spectrum.values)
    known = replace(known, kind=kind, boost=boost, energy=energy, singular=singular, kappa=spectrum.kappa)
    return Surveyed(plan, delta, known, spectrum)


def _touched(plan: DeltaPlan, delta: Delta, squares: NDArray[np.float64], moved: NDArray[np.bool_]) -> Surveyed:
    """Return what is known of a weight of which only some rows moved; a few of them tell the rest."""
    columns, places = delta.columns, np.flatnonzero(moved)
    chosen = rows_at(delta, places[:: -(-len(places) // _ROWS)]).reshape(-1)
    spectrum = spectrum_of(lambda start, stop: chosen[start:stop], len(chosen) // columns, columns, RANK, plan.key)
    energy = float(squares.sum())
    kappa = None if spectrum is None else spectrum.kappa
    lost = float(squares[~moved].sum()) / energy
    known = Known(plan.tensor.name, delta.rows, columns, "touched", len(places), energy, lost=lost, boost=BOOST, kappa=kappa)
    return Surveyed(plan, delta, known, squares=squares, moved=moved)
