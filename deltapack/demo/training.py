"""Training, fine-tuning and measuring the demo's models, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltapack.demo.model import VOCABULARY, ModelSize, logits
from deltapack.demo.muon import Muon

__all__ = ["Schedule", "bits_per_byte", "fine_tune", "train"]

_EVALUATION_BATCH = 16
_BETAS = (0.9, 0.95)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train.

    Attributes:
        steps: Number of optimizer steps.
        rate: Peak learning rate of Adam.
        matrix_rate: Peak learning rate of Muon, for the matrices inside the layers.
        batch: Number of windows per step.
        warmup: Number of steps over which the rates rise; afterwards they fall linearly to zero.
    """

    steps: int
    rate: float
    matrix_rate: float = 0.0
    batch: int = 8
    warmup: int = 8

    def share(self, step: int) -> float:
        """Return the part of the peak rates that step `step` (from 0) uses."""
        return min((step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - self.warmup))


def train(
    parameters: Mapping[str, Tensor],
    size: ModelSize,
    texts: Sequence[bytes],
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the parameters after training all of them on windows drawn evenly from `texts`.

    Args:
        parameters: Where to start, f32; left as they are.
        size: Shape of the model.
        texts: One or more texts; each step draws the same number of windows from each, give or take one.
        schedule: Steps, batch and rates.
        seed: Of the choice of windows.
        progress: Called with (steps done, steps in all).
    """
    weights = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
    inner = {name for name, tensor in weights.items() if tensor.ndim == 2 and ".layers." in name}
    muon = Muon([weights[name] for name in sorted(inner)])
    adam = _adam([tensor for name, tensor in weights.items() if name not in inner])

    def update(share: float) -> None:
        muon.step(schedule.matrix_rate * share)
        _adam_step(adam, schedule.rate * share)

    _run(weights, size, texts, schedule, update, seed, progress)
    return {name: tensor.detach() for name, tensor in weights.items()}


def fine_tune(
    parameters: Mapping[str, Tensor],
    size: ModelSize,
    text: bytes,
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the parameters after training the matrices, gently and with Adam alone, on windows of `text`.

    As in the fine-tunes that people publish, each weight moves by a little. Muon would move the matrix by as much in
    every direction, also where it hardly helps, and such a delta does not survive dropping. The norms
    stay: what is near 1 has no room for a small change in bf16.
    """
    weights = {name: tensor.clone().requires_grad_(tensor.ndim == 2) for name, tensor in parameters.items()}
    adam = _adam([tensor for tensor in weights.values() if tensor.requires_grad])
    _run(weights, size, [text], schedule, lambda share: _adam_step(adam, schedule.rate * share), seed, progress)
    return {name: tensor.detach() for name, tensor in weights.items()}


def bits_per_byte(parameters: Mapping[str, Tensor], size: ModelSize, text: bytes, windows: int) -> float:
    """Return the mean loss on evenly spaced windows of `text`, in bits per byte; always the same windows."""
    source = _tokens(text)
    length = size.context + 1
    count = min(windows, source.numel() // length)
    starts = [rank * (source.numel() - length) // max(1, count - 1) for rank in range(count)]
    batch = torch.stack([source[start : start + length] for start in starts])
    with torch.inference_mode():
        total = sum(float(_loss(parameters, size, part)) * part.shape[0] for part in torch.split(batch, _EVALUATION_BATCH))
    return total / count / math.log(2)


def _run(
    weights: Mapping[str, Tensor],
    size: ModelSize,
    texts: Sequence[bytes],
    schedule: Schedule,
    update: Callable[[float], None],
    seed: int,
    progress: Progress | None,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sources = [_tokens(text) for text in texts]
    shares = [len(range(rank, schedule.batch, len(sources))) for rank in range(len(sources))]
    for step in range(schedule.steps):
        draws = [_draw(source, size.context + 1, count, generator) for source, count in zip(sources, shares, strict=True)]
        torch.autograd.backward(_loss(weights, size, torch.cat(draws)))
        update(schedule.share(step))
        if progress is not None:
            progress(step + 1, schedule.steps)


def _adam(tensors: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(tensors, lr=0.0, betas=_BETAS, weight_decay=0.0)


def _adam_step(adam: torch.optim.Optimizer, rate: float) -> None:
    adam.param_groups[0]["lr"] = rate
    adam.step()
    adam.zero_grad()


def _tokens(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64)


def _draw(source: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` windows at random places, [count, length] int64."""
    starts = torch.randint(source.numel() - length + 1, (count,), generator=generator)
    return source[starts[:, None] + torch.arange(length)]


def _loss(parameters: Mapping[str, Tensor], size: ModelSize, windows: Tensor) -> Tensor:
    """Return the mean loss in nats of predicting each byte of `windows` [B, T + 1] from those before it."""
    scores = logits(parameters, size, windows[:, :-1])
    return F.cross_entropy(scores.reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))
