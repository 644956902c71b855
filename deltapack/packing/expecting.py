"""What a budget is expected to cost, by an estimate of how much noise hurts; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltapack.packing.allocation import Known, Rates, around, noise_of, share_of

__all__ = ["expected_loss", "kappa_of", "noise_together", "predicted_loss", "rate_of_loss", "shrunk"]

_CAUTION, _SHRINKS = 3.0, 0.5
"""What the estimate of kappa is raised by before anything is predicted from it, and the loss from which values are shrunk."""


def kappa_of(weights: Sequence[Known]) -> float:
    """Return how much loss noise makes: the mean over those of which it is known, by their energy."""
    known = [(known.kappa, known.energy) for known in weights if known.kappa is not None]
    energy = sum(power for _, power in known)
    return sum(kappa * power for kappa, power in known) / energy if energy > 0 else 0.0


def noise_together(weights: Sequence[Known], noises: Iterable[float]) -> float:
    """Return the noise of all weights from that of each, all relative to the power of the differences; 0 where these have none."""
    energy = sum(known.energy for known in weights)
    return sum(known.energy * noise for known, noise in zip(weights, noises, strict=True)) / energy if energy > 0 else 0.0


def expected_loss(kappa: float, noise: float) -> float:
    """Return the share of the fine-tune's gain that is expected to be lost at most: twice kappa times the noise, kappa raised threefold.

    Kappa and noise are means over the weights, by their energy. It is an estimate: measured ones were 1 to 3.5 times too low.

    >>> round(expected_loss(0.001, 10.0), 6), expected_loss(0.1, 10.0)
    (0.06, 1.0)
    """
    return min(1.0, 2 * _CAUTION * kappa * noise)


def predicted_loss(weights: Sequence[Known], rates: Rates) -> float:
    """Return the loss that is expected of weights with such rates."""
    return expected_loss(kappa_of(weights), noise_together(weights, (noise_of(known, share_of(known, rates)) for known in weights)))


def shrunk(kappa: float, noise: float) -> float:
    """Return what values are multiplied with so that noise hurts less; 1 where it hurts little.

    >>> shrunk(0.001, 20.0), shrunk(0.01, 100.0)
    (1.0, 0.5)
    """
    return 1.0 if kappa * noise <= _SHRINKS else 1 / (1 + kappa * noise)


def rate_of_loss(weights: Sequence[Known], loss: float, least: Rates, most: Rates) -> Rates:
    """Return the rates between two at which the predicted loss is `loss`; that of the two which comes nearer where none is."""
    if predicted_loss(weights, least) <= loss:
        return least
    _, rate = around(lambda rate: predicted_loss(weights, Rates(rate, rate)) <= loss, least.spent, most.spent)
    return most if rate >= most.spent else Rates(rate, rate)
