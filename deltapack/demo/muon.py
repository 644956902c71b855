"""Muon, the optimizer that makes a minute of training enough: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/).

`torch.optim.Muon` exists in recent versions only, and computes in bf16, which most CPUs do slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Muon"]

_MOMENTUM = 0.95
_ITERATIONS = 4  # 5 is usual; at this size the fifth costs more time than it gains
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """Updates a set of matrices, those of one shape together.

    Args:
        matrices: [rows, columns] f32 each, with gradients.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each matrix against its gradient, by `rate` in every singular direction, and drop the gradients."""
        for group, momentum in self._groups:
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonalise(gradient.lerp(momentum, _MOMENTUM))
            rows, columns = group[0].shape
            for matrix, direction in zip(group, update, strict=True):
                matrix.sub_(direction, alpha=rate * math.sqrt(max(1.0, rows / columns)))
                matrix.grad = None


def _orthogonalise(x: Tensor) -> Tensor:
    """Return each matrix of `x` [count, rows, columns] with its singular values brought near 1."""
    if x.shape[1] > x.shape[2]:
        return _orthogonalise(x.mT).mT
    a, b, c = _COEFFICIENTS
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
