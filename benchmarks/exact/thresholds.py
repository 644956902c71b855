"""What the encoder's thresholds are worth, on pairs that they were not tuned on, too: `python -m benchmarks.exact thresholds`.

A decoder knows nothing of them. Each variant sets one constant of the encoder anew and encodes all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.exact.inputs import Case, chunks_of
from benchmarks.results import Cell, Table, progress
from deltapack.codecs import exact, exact_modelling, exact_planes, exact_sharing
from deltapack.codecs.exact_modelling import Plan, Symbols
from deltapack.codecs.exact_sharing import Sample
from deltapack.codecs.exact_tables import SharedTables
from deltapack.kernels.cpu import exact_model
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import BIT, Bits

__all__ = ["VARIANTS", "Variant", "threshold_tables"]

HEADERS = ("threshold", "now", "variant", "pairs that change", "all %", "most won %", "on", "most lost %", "on it")
DETAIL_HEADERS = ("threshold", "variant", "pair", "type", "bytes", "more %")
QUANTILES = (0.05, 0.2, 0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Variant:
    """One threshold set anew.

    Attributes:
        threshold: What it decides.
        now: What it is.
        variant: What it is here.
        place: Module and name of what is replaced.
        value: What takes its place.
    """

    threshold: str
    now: str
    variant: str
    place: tuple[Any, str]
    value: Any


def _family(threshold: str, module: Any, name: str, *values: float, texts: Sequence[str] = ()) -> list[Variant]:
    now = str(getattr(module, name))
    return [Variant(threshold, now, text, (module, name), value) for value, text in zip(values, texts or map(str, values), strict=True)]


def _no_classes(sums: NDArray[np.uint32], numbers: Numbers) -> NDArray[np.uint8]:
    return np.zeros(len(sums), np.uint8)


def _best_quantile(values: Symbols, numbers: Numbers, tables: SharedTables) -> Plan:
    """Plan with many ways of dividing blocks, and with that of the threshold: what the best one could win."""
    found = [exact_modelling.plan_values(values, numbers, tables)]
    for share in QUANTILES:
        with _set(exact_modelling, "_classes_of", lambda sums, numbers, share=share: (sums > np.quantile(sums, share)).astype(np.uint8)):
            found.append(exact_modelling.plan_values(values, numbers, tables))
    return min(found, key=lambda plan: plan.bits)


def _spread_sample(places: int, length: int) -> Callable[[Bits | None, Bits, Numbers], float]:
    """Return an estimate of planes from so many stretches of so many numbers, in place of one in the middle."""

    def estimate(base: Bits | None, tuned: Bits, numbers: Numbers) -> float:
        starts = np.linspace(0, max(0, len(tuned) - length), places).astype(int)
        inside = [slice(start, start + length) for start in starts]
        found = sum(exact_planes.estimate_planes(None if base is None else base[own], tuned[own], numbers) for own in inside)
        return found * len(tuned) / sum(len(tuned[own]) for own in inside)

    return estimate


def _ranges_with(symbol: int, start: int) -> Any:
    """Return the search for ranges, compiled with other costs of a symbol and a range, in bits."""
    import numba

    loop = exact_model._ranges.py_func
    names = {**vars(exact_model), "SYMBOL_COST": symbol * BIT, "RANGE_COST": start * BIT}
    return numba.njit(error_model="numpy")(FunctionType(loop.__code__, names, loop.__name__))


def _variants() -> Iterator[Variant]:
    yield Variant("classes of blocks", "Otsu", "none", (exact_modelling, "_classes_of"), _no_classes)
    yield Variant("classes of blocks", "Otsu", "best of 5 quantiles", (exact, "plan_values"), _best_quantile)
    yield from _family("least chunk with classes", exact_modelling, "_LEAST_FOR_CLASSES", 1024, 16384)
    yield from _family(
        "hits of a staircase", exact_modelling, "_LEAST_HITS", 0.1, 0.2, 0.5, 2, texts=("0.1", "0.2", "0.5", "no staircases")
    )
    yield from _family("gain of a staircase", exact_modelling, "_LEAST_GAIN", 0.0, 0.005, 0.1)
    yield from _family("staircases from every so many blocks", exact_modelling, "_EVERY", 4, 64)
    flips = ("1/64", "1/1024", "any flip", "no far symbols")
    yield from _family("flips for far symbols, 1 in", exact_modelling, "_FLIPS", 64, 1024, 1 << 30, 0, texts=flips)
    yield from _family("changed for gaps alone, at most 1 in", exact, "_SPARSE_ONLY", 1024, 1 << 30, texts=("1024", "both always tried"))
    yield from _family("tables that are shared, at most", exact_sharing, "_MOST_TABLES", 0, 1, 2, 32)
    yield from _family("changed for symbols that may occur, 1 in", exact_sharing, "_WIDE", 16, 256)
    yield from _family("planes where below dense by", exact, "_UNFORESEEN", 0.9, 1.0, 9.0, texts=("0.9", "1.0", "always tried"))
    yield from _family("planes where more bits a number than", exact, "_STRUCTURE", 0.0, 1.0)
    for places, length in ((1, 4096), (3, 4096), (16, 1024)):
        sampled = _spread_sample(places, length)
        yield Variant("sample for planes", "4 times 1,024", f"{places} times {length:,}", (exact, "estimate_planes"), sampled)
    yield from _family("a plane coded where below plain by", exact_planes, "_WORTHWHILE", 0.98, 1.0)
    for symbol, start in ((6, 40), (12, 40), (9, 20), (9, 80), (7, 24)):
        name = f"{symbol} and {start} bits"
        yield Variant("cost of a symbol and a range", "9 and 40 bits", name, (exact_model, "_ranges"), _ranges_with(symbol, start))


VARIANTS: tuple[Variant, ...] = tuple(_variants())


@contextmanager
def _set(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def threshold_tables(cases: Sequence[Case], variants: Sequence[Variant] = VARIANTS) -> tuple[Table, Table]:
    """Return a row for each variant, and one for each variant and pair that it changes."""
    before = [_size(case) for case in cases]
    rows: list[tuple[Cell, ...]] = []
    details: list[tuple[Cell, ...]] = []
    for variant in variants:
        progress(f"{variant.threshold}: {variant.variant}")
        with _set(*variant.place, variant.value):
            sizes = [_size(case) for case in cases]
        more = [100 * (size / old - 1) for size, old in zip(sizes, before, strict=True)]
        named = [(value, f"{case.name} {case.dtype}") for value, case in zip(more, cases, strict=True)]
        least, most = min(named), max(named)
        won: tuple[Cell, ...] = (-least[0], least[1]) if least[0] < 0 else (None, None)
        lost: tuple[Cell, ...] = most if most[0] > 0 else (None, None)
        changed = [place for place, value in enumerate(more) if value]
        total = 100 * (sum(sizes) / sum(before) - 1)
        rows.append((variant.threshold, variant.now, variant.variant, len(changed), total, *won, *lost))
        head = (variant.threshold, variant.variant)
        details += [(*head, cases[place].name, cases[place].dtype.name, sizes[place], more[place]) for place in changed]
    return (
        Table("thresholds", "Thresholds of the encoder, one at a time", HEADERS, tuple(rows)),
        Table("threshold-pairs", "Thresholds of the encoder, pair by pair", DETAIL_HEADERS, tuple(details)),
    )


def _size(case: Case) -> int:
    """Return the bytes of all chunks of a case, and of the tables that they share."""
    chunks = list(chunks_of(case.tensors))
    blobs = exact_sharing.learn_tables(Sample(chunk.base, chunk.tuned, case.dtype) for chunk in chunks if chunk.base is not None)
    tables = SharedTables(blobs)
    return sum(map(len, blobs)) + sum(len(exact.encode_exact_chunk(chunk.base, chunk.tuned, case.dtype, tables)) for chunk in chunks)
