"""Language models on windows of tokens: losses, and how far their predictions are from a reference's; torch lives here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.errors import NonFiniteError

__all__ = ["Measured", "Reference", "measure"]

_LOGITS_BYTES = 128 << 20
"""Of the f32 logits of one batch; there are about three such arrays at a time."""

Advance = Callable[[int], None]
"""Called with the number of tokens that were read since the last call."""


@dataclass(frozen=True)
class Measured:
    """What a model makes of some windows.

    Attributes:
        losses: `[windows]` f64, mean negative log-likelihood of the tokens of each, in nats.
        kl: Mean KL divergence of the reference's predictions from its own, in nats a token; none without a reference.
        agreement: Share of the tokens where both find the same one likeliest; likewise.
    """

    losses: NDArray[np.float64]
    kl: float | None = None
    agreement: float | None = None

    @property
    def loss(self) -> float:
        """Mean over the windows, which are of one length."""
        return float(self.losses.mean())


@dataclass
class Reference:
    """The predictions of one model for the first windows, as f16 log-probabilities, within a bound of memory.

    Attributes:
        most_bytes: What they may take; one window is kept however long it is.
        batches: `[windows, window - 1, vocabulary]` of each batch.
    """

    most_bytes: int
    batches: list[torch.Tensor] = field(default_factory=list)

    def add(self, likelihoods: torch.Tensor) -> None:
        """Keep those of a batch, or as many of its windows as there is room for."""
        taken = sum(batch.nbytes for batch in self.batches)
        room = max(0 if self.batches else 1, (self.most_bytes - taken) // (2 * likelihoods[0].numel()))
        if room:
            self.batches.append(likelihoods[:room].to("cpu", torch.float16))

    @property
    def windows(self) -> int:
        """How many windows are kept."""
        return sum(map(len, self.batches))

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another window."""
        return bool(self.batches) and sum(batch.nbytes for batch in self.batches) + self.batches[0][0].nbytes > self.most_bytes


@torch.inference_mode()
def measure(
    model: Any, windows: NDArray[np.int64], where: Path, advance: Advance, *, keep: Reference | None = None, beside: Reference | None = None
) -> Measured:
    """Let a model predict each token of each window from those before it.

    Args:
        model: A language model of transformers, or what is called alike.
        windows: `[windows, window]`, token numbers.
        where: The model's path, for errors.
        advance: Called with tokens that were read.
        keep: Gets its predictions, as many as it takes.
        beside: Predictions of another model for the same windows.

    Raises:
        NonFiniteError: A loss is NaN or infinite.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(windows)
    losses, divergences, agreements = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    start, rows, kept = 0, 1, _Cursor(beside.batches if beside is not None else ())
    while start < len(ids):
        batch = ids[start : start + rows].to(device)
        likelihoods = torch.log_softmax(model(input_ids=batch, use_cache=False).logits[:, :-1].float(), -1)
        losses.append(-likelihoods.gather(2, batch[:, 1:, None]).squeeze(2).double().mean(1).cpu())
        if keep is not None and not keep.is_full:
            keep.add(likelihoods)
        other = kept.take(len(batch))
        if other is not None:
            divergence, agreement = _compare(other.to(device), likelihoods[: len(other)])
            divergences.append(divergence)
            agreements.append(agreement)
        start += len(batch)
        advance(batch.numel())
        rows = max(1, _LOGITS_BYTES // (4 * likelihoods[0].numel()))
    found = torch.cat(losses).numpy()
    if not np.isfinite(found).all():
        hint = "Its weights hold NaN or overflow; with --dtype f32 a model that overflows in f16 may not."
        raise NonFiniteError("the model's losses are not finite", path=where, found=f"{float(found.mean())}", hint=hint)
    if not divergences:
        return Measured(found)
    return Measured(found, float(torch.cat(divergences).mean()), float(torch.cat(agreements).double().mean()))


def _compare(reference: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL divergence and agreement at each token, flat.

    f16 rounds the reference's log-probabilities; normalised again they are those of a distribution, so that the rounding tells in second
    order only: KL between a model and itself is about 1e-7. Of vocabularies of two sizes the tokens that both have count.
    """
    common = min(reference.shape[-1], own.shape[-1])
    reference = torch.log_softmax(reference[..., :common].float(), -1)
    own = own if common == own.shape[-1] else torch.log_softmax(own[..., :common], -1)
    divergence = (reference.exp() * (reference - own)).sum(-1)
    return divergence.double().flatten().cpu(), (reference.argmax(-1) == own.argmax(-1)).flatten().cpu()


class _Cursor:
    """Hands out windows of batches that were cut otherwise."""

    def __init__(self, batches: Sequence[torch.Tensor]) -> None:
        self._left = list(batches)

    def take(self, count: int) -> torch.Tensor | None:
        """Return the next windows, at most `count`; none where there are no more."""
        taken = list[torch.Tensor]()
        while count and self._left:
            first = self._left[0]
            taken.append(first[:count])
            self._left[:1] = [first[count:]] if len(first) > count else []
            count -= len(taken[-1])
        return torch.cat(taken) if taken else None
