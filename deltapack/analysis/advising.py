"""What to do with a difference, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from deltapack.analysis.findings import BudgetRow, LayerFinding
from deltapack.sparsify.dare import HOPELESS, RISKY

__all__ = ["dare_risk", "recommend"]

_LOST = 0.02
"""Share of the gain that may be lost unless the user knows better."""
_FEW = 0.98
"""Share of equal elements from which an exact pack is small."""
_USUAL = 0.25
"""Bits a weight at which most fine-tunes keep nearly all."""


def dare_risk(max_abs: float) -> str:
    """Return how dropping 90 % at random goes with differences of up to this size: `"fails"`, `"risky"`, or nothing to say.

    >>> dare_risk(0.001), dare_risk(0.01), dare_risk(0.05)
    ('', 'risky', 'fails')
    """
    return "fails" if max_abs >= HOPELESS else "risky" if max_abs > RISKY else ""


def recommend(total: LayerFinding, budgets: Sequence[BudgetRow]) -> str:
    """Return one sentence.

    Args:
        total: All tensors together.
        budgets: What packs of some sizes are expected to be, the largest first.
    """
    if not total.energy:
        nothing = "Base and fine-tune have no difference that a pack could drop from (are the paths right?)"
        return f"{nothing}: `deltapack compress --exact` loses nothing."
    if total.unchanged >= _FEW:
        share = 100 * (1 - total.unchanged)
        return f"Only {share:.2g} % of the elements changed, so `deltapack compress --exact` is small and loses nothing."
    if not budgets:
        return "Too little of the difference is in weights for a budget to matter: `deltapack compress --exact` loses nothing."
    fits = [row for row in budgets if row.loss <= _LOST]
    if not fits:
        told = f"{_told(budgets[0])} would lose an estimated {_percent(budgets[0].loss)} of what the fine-tune gained"
        return f"The difference looks like noise: even {told}; measure it with `deltapack evaluate`, or use `deltapack compress --exact`."
    best = min(fits, key=lambda row: row.bytes)
    small = min(budgets, key=lambda row: abs(row.bits - _USUAL))
    if best.bits <= small.bits:
        loss = f"with an estimated loss of {_percent(best.loss)} of what the fine-tune gained"
        return f"Use {_told(best)}, {best.ratio:,.0f} times smaller than the fine-tune, {loss}."
    doubt = f"a cautious estimate says that {_told(small)} loses {_percent(small.loss)} of what the fine-tune gained"
    return f"Measure with `deltapack evaluate` before you publish: {doubt}, and {_told(best)} {_percent(best.loss)}."


def _told(row: BudgetRow) -> str:
    return f"`deltapack compress --target-bits {row.bits:g}` (about {_size(row.bytes)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _size(count: int) -> str:
    unit, one = ("kB", 1e3) if count < 1e6 else ("MB", 1e6) if count < 1e9 else ("GB", 1e9)
    return f"{count / one:.3g} {unit}"
