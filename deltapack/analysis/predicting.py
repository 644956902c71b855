"""What packs of some sizes are expected to be, from what is known of a difference."""

from __future__ import annotations

from collections.abc import Sequence

from deltapack.analysis.findings import BudgetRow, DareRow, TensorFinding
from deltapack.analysis.passing import Looked
from deltapack.packing.allocation import Known, Rates, allocate, noise_of, predicted_bits, share_of
from deltapack.packing.budget import QUALITIES, USUAL_QUALITY, Budget
from deltapack.packing.expecting import expected_loss, kappa_of, noise_together
from deltapack.packing.fitting import Fitting, rates_of
from deltapack.packing.inputs import Inputs
from deltapack.packing.roles import ROLES

__all__ = ["BITS", "DROP_RATES", "budget_rows", "dare_rows"]

BITS = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
"""Bits of the file for each float element."""
DROP_RATES = (0.5, 0.9, 0.95, 0.99)
_INEXACT = 1.05
"""How much larger than its budget a pack may be expected to be; the estimate is no better."""
_INT3_BITS, _INT3_NOISE = 2.8, 1.036
"""Bits of a value by int3, and what it makes of a Gaussian's power, with the right gain."""


def budget_rows(inputs: Inputs, looked: Looked, workers: int) -> tuple[list[BudgetRow], BudgetRow | None]:
    """Return what packs of some sizes are expected to be, and what `compress` makes when nothing is asked for.

    Returns:
        Rows, the largest first, but for those that the least of all weights would not fit; and that of the default. Neither where no weight
        changed.
    """
    known = [one.known for one in looked.weights.values() if one.known.energy > 0]
    if not known:
        return [], None
    overhead = Fitting(inputs, Budget(quality="balanced"), workers, looked.plans, looked.weights, None).overhead()
    tensors = inputs.finetuned.tensors.values()
    elements = sum(tensor.numel for tensor in tensors if tensor.dtype.is_delta)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    rows = []
    for bits in BITS:
        left = bits * elements - 8 * overhead
        rates = allocate(known, max(left, 0.0))
        size = overhead + sum(predicted_bits(one, share_of(one, rates)) for one in known) / 8
        if left > 0 and size <= _INEXACT * bits * elements / 8:
            rows.append(_row(bits, size, nbytes, known, rates))
    rates = rates_of(QUALITIES[USUAL_QUALITY], known)
    size = overhead + sum(predicted_bits(one, share_of(one, rates)) for one in known) / 8
    return rows, _row(8 * size / elements, size, nbytes, known, rates)


def _row(bits: float, size: float, nbytes: int, known: Sequence[Known], rates: Rates) -> BudgetRow:
    noise = noise_together(known, (noise_of(one, share_of(one, rates)) for one in known))
    return BudgetRow(bits, round(size), nbytes / size, noise, expected_loss(kappa_of(known), noise))


def dare_rows(tensors: Sequence[TensorFinding], looked: Looked) -> list[DareRow]:
    """Return what dropping at random is expected to be at some rates; none where no weight changed."""
    known = [one.known for one in looked.weights.values() if one.known.energy > 0]
    if not known:
        return []
    kappa = kappa_of(known)
    weights = [tensor for tensor in tensors if ROLES[tensor.role].route == "drop"]
    risky, failing = (sum(tensor.dare == risk for tensor in weights) for risk in ("risky", "fails"))
    rows = []
    for rate in DROP_RATES:
        noise = _INT3_NOISE / (1 - rate) - 1
        rows.append(DareRow(rate, _INT3_BITS * (1 - rate), noise, expected_loss(kappa, noise), risky, failing))
    return rows
