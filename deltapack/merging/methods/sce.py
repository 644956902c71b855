"""SCE: select, calculate, erase (Wan et al., FuseChat, arXiv 2408.07990; mergekit 0.1.5).

    select     keep the `select_topk` share of the elements whose delta_k vary most over the packs (population variance, zeros included)
    calculate  g_k = mean of delta_k squared, divided by the sum of these means over the packs     one number per tensor
    erase      M_k = [sign of delta_k is the sign of sum of delta_k], zero sums counting as positive
    result     = base + (sum of g_k * delta_k * M_k) / max(1e-6, sum of g_k * M_k)

There are no weights: the tensors' energies are. mergekit takes g_k = 1/packs where the sum of the means is below 1e-6, which holds for
two fine-tunes whose root mean square difference is below 0.0007; here g_k are the energies' shares unless all are zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.kernels.formulas import Election
from deltapack.kernels.layout import Sparse
from deltapack.merging.methods.settings import Parts, Settings

__all__ = ["election", "energies", "spread"]

_PIECE = 1 << 16


def spread(length: int, parts: Parts) -> Sparse:
    """Return the population variance over the packs where any of them keeps something, from f64 sums in pack order."""
    places, variances = [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
    for start, count, inside in _pieces(length, parts):
        positions, deltas = kernels.active().stack_terms(count, inside)
        wide = deltas.astype(np.float64)
        mean = sum(wide[1:], wide[0]) / len(wide)
        squares = [(row - mean) * (row - mean) for row in wide]
        places.append(positions + np.uint32(start))
        variances.append((sum(squares[1:], squares[0]) / len(wide)).astype(np.float32))
    return Sparse(np.concatenate(places), np.concatenate(variances))


def _pieces(length: int, parts: Parts) -> Iterator[tuple[int, int, Parts]]:
    """Yield start and length of short pieces of a chunk, and what the packs keep there: side by side, in f64, it is many times as much."""
    starts = np.arange(0, length, _PIECE)
    bounds = [np.searchsorted(positions, np.append(starts, length)) for positions, _ in parts]
    for piece, start in enumerate(starts.tolist()):
        inside = [slice(*bound[piece : piece + 2]) for bound in bounds]
        yield (
            start,
            min(_PIECE, length - start),
            [Sparse(positions[kept] - np.uint32(start), values[kept]) for (positions, values), kept in zip(parts, inside, strict=True)],
        )


def energies(length: int, parts: Parts, settings: Settings) -> NDArray[np.float64]:
    """Return `[packs] f64` sums of squares."""
    return np.array([kernels.active().sum_of_squares(values) for _, values in parts])


def election(settings: Settings) -> Election:
    """Return the formula with its numbers."""
    packs, total = len(settings.weights), sum(settings.statistic.tolist())
    shares = settings.statistic / total if total > 0 else np.full(packs, 1 / packs)
    weights, ones = shares.astype(np.float32), np.ones(packs, np.float32)
    return Election(ones, weights, weights, floor=1e-6)
