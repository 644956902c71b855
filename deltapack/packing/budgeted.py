"""How one weight is packed with the share of a budget that it got: factors, and what is coded of the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.chunk import TermCodec
from deltapack.codecs.scaling import DROPPED, Scaling, nearest_lines
from deltapack.packing.allocation import LEAST_RATE, Known, Share, factor_bits, noise_of
from deltapack.packing.coding import Fitted, fit_levels, fit_signs, fit_trits
from deltapack.packing.deltas import Passing, rows_at, sampled
from deltapack.packing.directions import Directions, directions_of
from deltapack.packing.expecting import shrunk
from deltapack.packing.factoring import faithful_factors
from deltapack.packing.gaussian import non_zero
from deltapack.packing.knowing import Surveyed
from deltapack.packing.planning import DeltaPlan
from deltapack.sparsify.dare import ALL_KEPT

__all__ = ["Planned", "plan_weight"]

Sample = NDArray[np.float32]
_LEAST_KEEP, _ALL = 1 << 16, 0.999
"""The least K of a stratified mask, and the density from which all elements are kept."""
_SAMPLED = 1 << 20
_MOST_GAIN = 1e6
_UNEVEN = 2.0
"""Noise of trits, were all kept, above which a few elements hold most of the power, and levels that are mostly 0 leave less: a Gaussian's
is 0.5."""
_OF_FACTORS = 0.6
"""What wider codes of factors may take of a weight's bits."""
_HARDLY = 0.03
"""Share of a difference's power that factors may leave uncoded, where codes of it would add more than they give."""
_LOWEST_SCALE, _HIGHEST_SCALE = 1e-30, 1e30
"""Scales below the one are those of nothing: their products would leave the range of f32, as those of scales above the other would."""


@dataclass(frozen=True)
class Planned:
    """A weight with its share.

    Attributes:
        plan: How it is packed.
        noise: Squared error that is expected, relative to the power of its difference.
        directions: What its factors are made of, which another share may ask for, too.
    """

    plan: DeltaPlan
    noise: float
    directions: Directions | None = None


def plan_weight(surveyed: Surveyed, share: Share, kappa: float, held: Directions | None = None) -> Planned:
    """Plan a weight; reads a sample of it, and where there are factors all of it.

    Args:
        surveyed: What is known of it; it has energy.
        share: What it gets.
        kappa: How much noise costs, of the whole model.
        held: Directions that were found for another share, which need not be found again if these are enough.
    """
    if surveyed.known.kind == "touched":
        return _touched(surveyed, share, kappa)
    directions, sample = held, None
    if surveyed.spectrum is not None and share.rank > (0 if held is None else len(held.values)):
        passing = Passing(surveyed.delta)
        directions = directions_of(passing.times, surveyed.spectrum, share.rank)
        sample = passing.sample()
    return replace(_body(surveyed, share, kappa, directions, sample), directions=directions)


def _body(surveyed: Surveyed, share: Share, kappa: float, directions: Directions | None, sample: Sample | None) -> Planned:
    """Plan a weight all of whose rows count, by a sample of its difference, which is read unless it is there."""
    known = surveyed.known
    most = _OF_FACTORS * (factor_bits(known, share) + share.rate * known.elements)
    factors = None
    if directions is not None and share.rank:
        factors = faithful_factors(directions.first(share.rank), known.energy, share.bits, most)
    plan = replace(surveyed.plan, factors=factors)
    spent = 8.0 * len(factors.stored()) if factors is not None else 0.0
    alone = 0.0 if factors is None else noise_of(known, Share("", 0.0, factors.shape.rank, factors.shape.bits))
    if share.values == "" and factors is not None:
        return _without_codes(plan, alone)
    rate = max(share.rate + (factor_bits(known, share) - spent) / known.elements, LEAST_RATE)
    left = sampled(surveyed.delta, factors, sample)
    coded = _coded(surveyed, plan, rate, share.values or "ternary", kappa, left)
    return coded if coded is not None else _without_codes(plan, alone)


def _without_codes(plan: DeltaPlan, noise: float) -> Planned:
    """Return a plan of factors alone; where there are none that of no budget, which loses next to nothing of what no code fits."""
    return Planned(plan, 0.0) if plan.factors is None else Planned(replace(plan, residual=False), noise)


def _coded(surveyed: Surveyed, plan: DeltaPlan, rate: float, values: str, kappa: float, sample: Sample) -> Planned | None:
    """Plan what factors leave: trits at random places, or levels everywhere; `None` where a sample of it is zero."""
    known, delta, factors = surveyed.known, surveyed.delta, plan.factors
    fitted = fit_levels(sample, rate) if values == "uniform" else fit_trits(sample, non_zero(rate))
    if values == "ternary" and fitted is not None and fitted.noise(1.0) > _UNEVEN:
        values, fitted = "uniform", fit_levels(sample, rate)
    if fitted is None:
        return None
    if not _usable(fitted):  # factors alone would be a loss that nobody expects
        return Planned(replace(plan, factors=None), 0.0)
    left = float(np.square(sample, dtype=np.float64).mean()) * delta.common / known.energy
    if factors is not None and left < _HARDLY and fitted.noise(1.0 if values == "uniform" else min(1.0, rate / fitted.bits)) > 1:
        return _without_codes(plan, left)
    scaling = Scaling("tensor", fitted.scale, threshold=fitted.threshold)
    return _finished(plan, known, fitted, Choice(values, scaling, 1.0 if values == "uniform" else rate / fitted.bits), (left, 0.0), kappa)


def _touched(surveyed: Surveyed, share: Share, kappa: float) -> Planned:
    """Plan the rows that moved: signs at random places, or levels everywhere, with a scale for each row."""
    known, squares, moved = surveyed.known, surveyed.squares, surveyed.moved
    scales = np.sqrt(squares / known.columns)
    scale = float(np.sqrt(np.square(scales[moved]).mean()))
    if not _LOWEST_SCALE < scale < _HIGHEST_SCALE:
        return _without_codes(surveyed.plan, 0.0)
    rows = np.where(moved, nearest_lines(scales / scale), DROPPED).astype(np.uint8)
    scaling = Scaling("rows", scale, rows, width=known.columns)
    own = scaling.lines.rows.astype(np.float64) * scaling.lines.scale
    places = np.flatnonzero(moved)
    chosen = places[:: max(1, len(places) * known.columns // _SAMPLED)]
    sample = rows_at(surveyed.delta, chosen)
    fitted = _signs(sample, own[chosen]) if share.values == "sign" else _levels(sample, own[chosen], share.rate)
    if fitted is None or not _usable(fitted):
        return _without_codes(surveyed.plan, 0.0)
    scaling = replace(scaling, scale=scale * fitted.scale)
    density = share.rate / fitted.bits if share.values == "sign" else 1.0
    return _finished(surveyed.plan, known, fitted, Choice(share.values, scaling, density), (1 - known.lost, known.lost), kappa)


def _signs(sample: NDArray[np.float32], own: NDArray[np.float64]) -> Fitted:
    """Fit signs to rows `[n, columns]` with scales of their own `[n]`."""
    power = float(np.square(sample, dtype=np.float64).sum())
    total = float((np.abs(sample).sum(1, dtype=np.float64) * own).sum())
    return fit_signs(power, total, sample.shape[1] * float(np.square(own).sum()))


def _levels(sample: NDArray[np.float32], own: NDArray[np.float64], rate: float) -> Fitted | None:
    """Fit levels to them, in units of their scales."""
    normal = (sample / own[:, None]).astype(np.float32).reshape(-1)
    return fit_levels(normal, rate, np.repeat(np.square(own), sample.shape[1]))


@dataclass(frozen=True)
class Choice:
    """How the elements of a weight are coded one by one, but for the gain, which is still to be brought into the scale."""

    values: str
    scaling: Scaling
    density: float


def _finished(plan: DeltaPlan, known: Known, fitted: Fitted, choice: Choice, powers: tuple[float, float], kappa: float) -> Planned:
    """Return the plan with its codec, whose scale has the gain, and its factor: what dropping asks for, and what noise asks for.

    Args:
        plan: The plan, with its factors.
        known: What is known of the weight.
        fitted: The code.
        choice: How it is used.
        powers: Power of what is coded, and of what is not, relative to the weight's.
        kappa: How much noise costs.
    """
    keep = ALL_KEPT if choice.density >= _ALL else max(_LEAST_KEEP, round(choice.density * ALL_KEPT))
    density = keep / ALL_KEPT
    noise = powers[0] * fitted.noise(density) + powers[1]
    factor = float(np.float32(shrunk(kappa, noise) / density))
    scaling = replace(choice.scaling, scale=choice.scaling.scale * fitted.gain, threshold=choice.scaling.threshold / fitted.gain)
    codec = TermCodec("all" if keep == ALL_KEPT else "stratified", choice.values, scaling=scaling)
    return Planned(replace(plan, recipe=replace(plan.recipe, keep=keep, factor=factor), codec=codec), noise)


def _usable(fitted: Fitted) -> bool:
    """Whether f32 can hold what the codes stand for."""
    return fitted.gain < _MOST_GAIN and _LOWEST_SCALE < fitted.scale < _HIGHEST_SCALE
