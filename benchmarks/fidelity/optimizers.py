"""The optimizers of the study's models: AdamW, and for what starts from nothing Muon, in bf16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["stepper"]

_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def stepper(masters: Mapping[str, Tensor], rate: float, matrix_rate: float, decay: float) -> Callable[[float], None]:
    """Return what moves weights against their gradients, by a share of the rates.

    Args:
        masters: f32 weights with gradients; moved in place.
        rate: Of AdamW.
        matrix_rate: Of Muon, for the matrices inside of layers; 0 leaves them to AdamW.
        decay: AdamW's weight decay, on matrices.
    """
    inner = [tensor for name, tensor in masters.items() if matrix_rate and tensor.ndim == 2 and ".layers." in name]
    others = [tensor for tensor in masters.values() if all(tensor is not one for one in inner)]
    groups = [
        {"params": [tensor for tensor in others if tensor.ndim > 1], "weight_decay": decay},
        {"params": [tensor for tensor in others if tensor.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, rate, (0.9, 0.99), fused=True)
    momenta = [torch.zeros_like(tensor) for tensor in inner]

    @torch.no_grad()
    def step(share: float) -> None:
        for group in adam.param_groups:
            group["lr"] = rate * share
        adam.step()
        for tensor, momentum in zip(inner, momenta, strict=True):
            if tensor.grad is not None:
                momentum.lerp_(tensor.grad, 1 - _MOMENTUM)
                direction = _orthogonal(tensor.grad.lerp(momentum, _MOMENTUM))
                tensor.sub_(direction, alpha=matrix_rate * share * math.sqrt(max(1.0, tensor.shape[0] / tensor.shape[1])))

    return step


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix with its singular values brought near 1."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T).T
    a, b, c = _COEFFICIENTS
    x: Tensor = (matrix / (torch.linalg.matrix_norm(matrix) + 1e-7)).to(torch.bfloat16)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(torch.float32)
