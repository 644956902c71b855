"""How bits are shared among weights: sums, kinds, ranks, and what is foreseen of the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from deltapack.packing.allocation import LEAST_RATE, MOST_RATE, Known, Rates, Share, allocate, noise_of, predicted_bits, share_of
from deltapack.packing.expecting import expected_loss, kappa_of, noise_together, predicted_loss, rate_of_loss, shrunk
from deltapack.packing.gaussian import non_zero

FLAT = tuple([1.0] * 8)
BODY = Known("body", 576, 576, "body", 576, 576.0, FLAT)
SPIKED = replace(BODY, singular=(200.0, 60.0, 30.0, 20.0, 5.0, 4.0, 3.0, 2.0))
WIDE = Known("wide", 4096, 4096, "body", 4096, 4096.0, (400.0, 300.0, 250.0, 200.0, 150.0, 120.0, 100.0, 90.0))
TOUCHED = Known("embed", 30_000, 384, "touched", 2_000, 100.0, lost=0.001, boost=4.0)
HEAD = Known("lm_head", 256, 384, "body", 256, 10.0, FLAT, boost=4.0)
DENSE = Known("embed", 49_152, 576, "dense", 49_152, 100.0, (50.0, 5.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0))
SMALL = Known("conv", 256, 3, "body", 256, 1.0)


def at(known: Known, rate: float) -> Share:
    return share_of(known, Rates(rate, rate))


MODEL = (BODY, SPIKED, WIDE, TOUCHED, DENSE, SMALL, HEAD)


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 4.0])
def test_the_bits_are_those_asked_for(rate: float) -> None:
    bits = rate * sum(known.rows * known.columns for known in MODEL)
    rates = allocate(MODEL, bits)
    assert sum(predicted_bits(known, share_of(known, rates)) for known in MODEL) == pytest.approx(bits, rel=1e-5)
    more = allocate(MODEL, 1.05 * bits, rates.chosen)  # codes stay; there is more of each
    assert sum(predicted_bits(known, share_of(known, more)) for known in MODEL) == pytest.approx(1.05 * bits, rel=1e-5)
    assert [share_of(known, more).rank for known in MODEL] == [share_of(known, rates).rank for known in MODEL]


def test_budgets_out_of_reach_give_the_ends() -> None:
    assert allocate(MODEL, 0.0).spent == pytest.approx(LEAST_RATE)
    assert allocate(MODEL, 1e30).spent == pytest.approx(MOST_RATE)
    assert allocate((), 1000.0).spent == pytest.approx(MOST_RATE)


@pytest.mark.parametrize(
    ("rate", "rank", "bits"),
    [(1.0, 4, 4), (0.25, 4, 4), (0.1, 2, 4), (0.05, 2, 2), (0.02, 1, 2), (0.004, 0, 0)],
)
def test_factors_of_the_body_as_measured(rate: float, rank: int, bits: int) -> None:
    share = at(SPIKED, rate)
    assert (share.rank, share.bits, share.values) == (rank, bits, "ternary")
    assert predicted_bits(SPIKED, share) == pytest.approx(rate * SPIKED.elements)


def test_a_wider_weight_gets_more_rank_where_it_pays() -> None:
    assert at(WIDE, 0.1).rank > 4
    flat = replace(WIDE, singular=tuple([1.0] * 8))
    assert at(flat, 0.25).rank == 4


def test_no_factors_without_directions_or_for_narrow_weights() -> None:
    assert at(replace(BODY, singular=()), 0.25).rank == 0
    assert at(replace(SMALL, singular=FLAT), 0.25).rank == 0


def test_a_small_head_gets_four_times_the_rate() -> None:
    plain = replace(HEAD, boost=1.0)
    assert at(HEAD, 0.1) == at(plain, 0.4) and at(HEAD, 2.0).rate == pytest.approx(at(plain, 3.0).rate)


def test_rows_that_moved_get_four_times_the_rate() -> None:
    share = at(TOUCHED, 0.1)
    assert (share.values, share.rank) == ("sign", 0) and share.rate == pytest.approx(0.4)
    assert (at(TOUCHED, 0.25).values, at(TOUCHED, 0.25).rate) == ("sign", 1.0)
    assert (at(TOUCHED, 0.5).values, at(TOUCHED, 0.5).rate) == ("uniform", 2.0)
    assert at(TOUCHED, 1.0).rate == 3.0 and at(TOUCHED, 5.0).rate == 5.0
    assert predicted_bits(TOUCHED, share) == pytest.approx(0.4 * 2_000 * 384 + 8 * 30_000)


def test_a_wide_vocabulary_is_factors_alone_while_bits_are_few() -> None:
    for rate, rank in ((0.02, 4), (0.05, 8), (0.1, 8), (0.25, 8)):
        share = at(DENSE, rate)
        assert (share.rank, share.bits, share.values, share.rate) == (rank, 4, "", 0.0)
    share = at(DENSE, 0.75)
    assert (share.rank, share.values) == (8, "ternary") and share.rate == pytest.approx(0.7, abs=0.01)
    spread = replace(DENSE, singular=tuple([1.0] * 8))  # nothing that factors could hold
    assert at(spread, 0.1).values == "ternary"


def test_levels_above_one_bit() -> None:
    assert non_zero(0.5) == 0.22 < non_zero(1.2) < 0.4
    for known in (BODY, SPIKED):
        assert at(known, 0.9).values == "ternary" and at(known, 2.0).values == "uniform"


def test_noise_falls_with_the_rate() -> None:
    rates = [0.01 * 1.2**step for step in range(35)]
    for known in MODEL[1:]:
        noises = [noise_of(known, at(known, rate)) for rate in rates]
        # What is handed from one code to another may cost some; what is left of a vocabulary is noise at first, as that of the body.
        assert all(later <= (3 if known is DENSE else 1.7) * sooner + 1e-3 for sooner, later in pairwise(noises)), known.name
        assert noises[0] > noises[-1]
    assert noise_of(BODY, at(replace(BODY, singular=()), 0.25)) == pytest.approx(1.55 / 0.25 - 1, rel=0.01)


def test_kappa_is_a_mean_by_energy() -> None:
    weights = [replace(BODY, energy=1.0, kappa=0.01), replace(BODY, energy=3.0, kappa=0.05), replace(BODY, energy=100.0)]
    assert kappa_of(weights) == pytest.approx(0.04) and kappa_of([BODY]) == 0.0 and kappa_of([]) == 0.0


def test_the_rates_of_a_loss() -> None:
    weights, least, most = tuple(replace(one, kappa=0.003) for one in (BODY, SPIKED)), Rates(0.05, 0.05), Rates(0.2, 0.21)
    half = 0.5 * predicted_loss(weights, Rates(0.08, 0.08))
    rates = rate_of_loss(weights, half, least, most)
    assert 0.08 < rates.spent < 0.2 and predicted_loss(weights, rates) == pytest.approx(half, rel=1e-3)
    assert rate_of_loss(weights, 1e-12, least, most) == most and rate_of_loss(weights, 1e12, least, most) == least
    assert predicted_loss((), most) == 0.0 and predicted_loss([replace(BODY, kappa=1.0)], least) == 1.0


def test_noise_together_is_a_mean_by_energy() -> None:
    assert noise_together([replace(BODY, energy=1.0), replace(BODY, energy=3.0)], [2.0, 6.0]) == 5.0 and noise_together([], []) == 0.0
    assert expected_loss(0.01, 5.0) == pytest.approx(0.3) and expected_loss(0.01, 50.0) == 1.0


def test_values_are_shrunk_where_noise_hurts() -> None:
    assert shrunk(0.001, 499.0) == 1.0 and shrunk(0.01, 49.0) == 1.0 and shrunk(0.01, 60.0) == pytest.approx(1 / 1.6)
