"""How a budget is shared among the weights of a model: which code each gets, and how many bits. Pure functions of a few statistics.

All weights get the same rate, in bits an element; what is known of their kinds says how it is spent (docs/design.md):

- The body: factors of low rank where they take at most about half of it, and a ternary code at random places for the rest.
- Rows of a vocabulary of which most have hardly moved ("touched"): these rows only, by their signs, at four times the rate.
- A wide vocabulary of which all rows moved ("dense"): factors alone, whose size depends on no rate, while there are few bits.
- Above one bit a weight: a uniform quantiser on all elements, where it leaves less noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from deltapack.packing.gaussian import UNIFORM_FROM, element_noise

__all__ = [
    "BOOST",
    "LEAST_RATE",
    "MOST_RATE",
    "NARROW",
    "Kind",
    "Known",
    "Rates",
    "Share",
    "allocate",
    "around",
    "factor_bits",
    "noise_of",
    "predicted_bits",
    "share_of",
]

LEAST_RATE, MOST_RATE = 2e-4, 6.0
"""Bits a weight below which next to nothing is kept, and above which the uniform quantiser has no more levels."""
_BASE_RANK, _FEWER, _MOST_RANK = 4, 2, 8
_MANY, _FOUR_BITS = 0.2, 0.075
"""Rates from which the body gets that rank and not half of it, and from which codes of factors have four bits and not two."""
_FIRST, _THIRD, _HALF = 0.45, 1 / 3, 0.5
"""What factors may take of a weight: the first direction, without which other codes are wrong where it hurts most; and all, below and
from that rate."""
_HALVINGS, _ROUGHLY, _LOOKED = 28, 14, 512
"""How exactly a rate is found, and one by which codes are chosen; weights that are looked at one by one for that."""
NARROW = 16
"""Rows or columns below which factors are no smaller than what they stand for."""
_WORTH = 0.3
"""Share of the energy of a wide vocabulary's difference that factors must explain, or it is no different from the body."""
_FEW, _LEAST_FACTORS = 0.03, 0.005
"""Rate up to which a wide vocabulary gets half of the rank, and up to which there are no factors."""
_REST_FROM = 0.5
"""Rate from which what factors leave of a wide vocabulary is coded, too."""
BOOST, _SIGNS = 4.0, 1.0
"""What rows that moved and small heads get, in rates of the body, and the rate above which such rows get levels and not signs."""
_LEVEL_RATE = 3.0
"""Rate up to which those get more than the body."""
_FACTOR_NOISE = {2: 0.12, 4: 0.012}
"""Relative squared error of factors by the bits of their codes."""
_CODE_BITS = {2: 1.9, 4: 3.5}
"""Bits of a code of factors, after the zstd stage."""

Kind = Literal["body", "touched", "dense"]


@dataclass(frozen=True)
class Known:
    """What is known of a weight before its budget is.

    Attributes:
        name: Its name.
        rows: Its rows: elements by columns.
        columns: Its last dimension.
        kind: What it is.
        moved: Rows that moved, all but of one that is `"touched"`.
        energy: Sum of squares of its difference.
        singular: Largest squared singular values of its difference, falling; of one whose factors are of no use, none.
        lost: Share of the energy in the rows that have hardly moved.
        boost: Rates of the body that it gets.
        kappa: How much loss noise on it makes, |d|^6 / (m n |d d^T d|^2), by an estimate; `None` where there is none.
    """

    name: str
    rows: int
    columns: int
    kind: Kind
    moved: int
    energy: float
    singular: tuple[float, ...] = ()
    lost: float = 0.0
    boost: float = 1.0
    kappa: float | None = None

    @property
    def elements(self) -> int:
        """Elements that may be coded one by one."""
        return self.moved * self.columns

    def explained(self, rank: int) -> float:
        """Return the share of the energy in the first singular directions."""
        return min(1.0, sum(self.singular[:rank]) / self.energy) if self.energy > 0 else 0.0


@dataclass(frozen=True)
class Share:
    """What a weight gets.

    Attributes:
        values: Value codec of the elements that are coded one by one; empty where none is.
        rate: Bits for each of `Known.elements`.
        rank: Rank of the factors that are taken off before; 0: there are none.
        bits: Bits of their codes.
    """

    values: str
    rate: float
    rank: int = 0
    bits: int = 0


@dataclass(frozen=True)
class Rates:
    """Bits an element of the body.

    Attributes:
        chosen: By which codes and ranks are chosen.
        spent: What there is for them, about the same: what is left between two choices goes into more elements.
    """

    chosen: float
    spent: float


def share_of(known: Known, rates: Rates) -> Share:
    """Return what a weight gets."""
    if known.boost != 1:
        rates = Rates(*(min(known.boost * rate, max(_LEVEL_RATE, rate)) for rate in (rates.chosen, rates.spent)))
    if known.kind == "touched":
        return Share("sign" if rates.chosen <= _SIGNS else "uniform", rates.spent)
    if known.kind == "dense" and rates.chosen > _LEAST_FACTORS and known.explained(_MOST_RANK) >= _WORTH:
        rank = min(_MOST_RANK if rates.chosen > _FEW else _BASE_RANK, len(known.singular))
        if rates.chosen < _REST_FROM:
            return Share("", 0.0, rank, 4)
        bits = 4
    else:
        rank, bits = _factors(known, rates.chosen)
    taken = _factor_rate(known, rank, bits)
    return _coded(rates.chosen - taken, rates.spent - taken, rank, bits)


def _coded(chosen: float, spent: float, rank: int, bits: int) -> Share:
    """Return the share of one whose elements get bits besides factors."""
    return Share("uniform" if chosen >= UNIFORM_FROM else "ternary", max(spent, LEAST_RATE), rank, bits)


def _factors(known: Known, rate: float) -> tuple[int, int]:
    """Return rank and bits of the body's factors."""
    if min(known.rows, known.columns) < NARROW or rate <= _LEAST_FACTORS:
        return 0, 0
    bits = 4 if rate >= _FOUR_BITS else 2
    base, most = (_BASE_RANK, _HALF) if rate >= _MANY else (_FEWER, _THIRD)
    fits = [rank for rank in range(1, len(known.singular) + 1) if _factor_rate(known, rank, bits) <= (_FIRST if rank == 1 else most) * rate]
    if not fits:
        return 0, 0
    # The least noise takes too few: what the first directions hold counts for more than their energy. More only where it pays.
    base = min(fits[-1], base)
    best = min((rank for rank in fits if base <= rank <= _MOST_RANK), key=lambda rank: _body_noise(known, rate, rank, bits))
    if rate >= UNIFORM_FROM and _body_noise(known, rate, 0, bits) < _body_noise(known, rate, best, bits):
        return 0, 0
    return best, bits


def factor_bits(known: Known, share: Share) -> float:
    """Return the bits that the factors of a weight are expected to take."""
    return _factor_rate(known, share.rank, share.bits) * known.rows * known.columns


def _factor_rate(known: Known, rank: int, bits: int) -> float:
    """Return the bits of factors for each element of the weight."""
    return rank * ((known.rows + known.columns) * _CODE_BITS[bits] + 64) / (known.rows * known.columns) if rank else 0.0


def _body_noise(known: Known, rate: float, rank: int, bits: int) -> float:
    explained = known.explained(rank)
    left = rate - _factor_rate(known, rank, bits)
    return (1 - explained) * element_noise("uniform" if left >= UNIFORM_FROM else "ternary", left) + explained * _FACTOR_NOISE.get(
        bits, 0.0
    )


def noise_of(known: Known, share: Share) -> float:
    """Return the squared error that is expected of what is restored, relative to the difference's power."""
    explained = known.explained(share.rank)
    coded = explained * _FACTOR_NOISE.get(share.bits, 0.0)
    if share.values == "":
        return coded + 1 - explained
    return coded + known.lost + max(0.0, 1 - explained - known.lost) * element_noise(share.values, share.rate)


def predicted_bits(known: Known, share: Share) -> float:
    """Return the bits that a weight is expected to take, without what a pack says of any tensor."""
    rows = 8.0 * known.rows if known.kind == "touched" else 0.0
    return (
        _factor_rate(known, share.rank, share.bits) * known.rows * known.columns
        + min(share.rate, _most_bits(share)) * known.elements
        + rows
    )


def _most_bits(share: Share) -> float:
    return {"sign": 1.0, "ternary": 1.6}.get(share.values, MOST_RATE)


def allocate(weights: Sequence[Known], bits: float, chosen: float | None = None) -> Rates:
    """Return the rates at which all weights together take so many bits; between `LEAST_RATE` and `MOST_RATE`.

    Args:
        weights: The weights.
        bits: Bits for all of them.
        chosen: The rate by which codes and ranks are chosen; by that which gives these bits unless given.
    """
    if chosen is None:
        chosen = _chosen(weights, bits)
    shares = [share_of(known, Rates(chosen, chosen)) for known in weights]
    fixed = sum(predicted_bits(known, replace(share, rate=0.0)) for known, share in zip(weights, shares, strict=True))
    coded = [(known, share) for known, share in zip(weights, shares, strict=True) if share.values]
    boosts, elements = (np.array([getattr(known, name) for known, _ in coded], np.float64) for name in ("boost", "elements"))
    taken = np.array([factor_bits(known, share) / (known.rows * known.columns) for known, share in coded])
    most = np.array([_most_bits(share) for _, share in coded])

    def reached(rate: float) -> bool:
        mine = np.where(boosts == 1, rate, np.minimum(boosts * rate, max(_LEVEL_RATE, rate)))
        return fixed + float((np.minimum(np.maximum(mine - taken, LEAST_RATE), most) * elements).sum()) >= bits

    return Rates(chosen, around(reached)[1])


def _chosen(weights: Sequence[Known], bits: float) -> float:
    """Return about the rate at which the weights take so many bits: of many small ones a part stands for all."""
    ordered = sorted(weights, key=lambda known: -known.rows * known.columns)
    large, small = ordered[:_LOOKED], ordered[_LOOKED:]
    few = small[:: max(1, len(small) // _LOOKED)]
    times = sum(known.elements for known in small) / max(1, sum(known.elements for known in few))

    def reached(rate: float) -> bool:
        first, rest = (sum(predicted_bits(known, share_of(known, Rates(rate, rate))) for known in part) for part in (large, few))
        return first + times * rest >= bits

    return around(reached, halvings=_ROUGHLY)[0]


def around(
    reached: Callable[[float], bool], low: float = LEAST_RATE, high: float = MOST_RATE, halvings: int = _HALVINGS
) -> tuple[float, float]:
    """Return the two rates, next to each other, between which something becomes so that is not so at low rates."""
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low, high
