"""What the methods of the study are made of: quantisers with their true bits, masks, and factors of a delta. Nothing here needs data.

Bits are order-0 entropies, what an ideal coder with one table would take, so that no method suffers from how it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256

import torch
from torch import Tensor

__all__ = ["Deltas", "bf16", "binary_entropy", "density_for", "entropy", "kept", "largest", "lloyd", "low_rank", "uniform"]

RANKS = 192
"""The most singular triples that are kept of a delta."""


class Deltas(Mapping[str, Tensor]):
    """Differences of a fine-tune by name, f32 of two or more dimensions, with the singular triples of each as a matrix.

    Args:
        values: By name; one of more than two dimensions is seen as a matrix of its last.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = {name: value.reshape(-1, value.shape[-1]) for name, value in values.items()}
        self._triples: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def numel(self) -> int:
        return sum(value.numel() for value in self.values())

    def triples(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return U [rows, ranks], S [ranks] and V [columns, ranks] of a delta, largest first."""
        if name not in self._triples:
            self._triples[name] = triples(self[name])
        return self._triples[name]


def triples(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first singular triples of a matrix, from the eigenvectors of its smaller square."""
    if matrix.shape[0] < matrix.shape[1]:
        v, s, u = triples(matrix.T)
        return u, s, v
    power, vectors = torch.linalg.eigh(matrix.T @ matrix)
    s, v = power.flip(0)[:RANKS].clamp_min(0).sqrt(), vectors.flip(1)[:, :RANKS].contiguous()
    return matrix @ v / s.clamp_min(1e-12), s, v


def generator_of(name: str, seed: int) -> torch.Generator:
    """Return the source of a tensor's mask."""
    return torch.Generator().manual_seed(int.from_bytes(sha256(f"{name}/{seed}".encode()).digest()[:7], "little"))


def kept(delta: Tensor, density: float, name: str, seed: int) -> Tensor:
    """Return a random mask, which costs nothing: a seed gives it again."""
    return torch.rand(delta.shape, generator=generator_of(name, seed)) < density


def largest(values: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest magnitudes; of equal ones, some."""
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().flatten().topk(min(count, values.numel()), sorted=False).indices] = True
    return mask.view(values.shape)


def entropy(codes: Tensor) -> float:
    """Return the order-0 entropy of whole numbers, in bits for all of them."""
    if not codes.numel():
        return 0.0
    whole = codes.flatten().round().to(torch.int64)
    counts = torch.bincount(whole - whole.min())
    shares = counts[counts > 0].double() / codes.numel()
    return -float((shares * shares.log2()).sum()) * codes.numel()


def binary_entropy(share: float) -> float:
    """Return the bits an element of a mask that a decoder cannot make."""
    return 0.0 if share <= 0 or share >= 1 else -(share * math.log2(share) + (1 - share) * math.log2(1 - share))


def density_for(rate: float, bits: float) -> float:
    """Return the share of kept elements at which positions and `bits` for each value take `rate` bits an element."""
    low, high = 0.0, 1 / (1 + 2.0**-bits)  # where the sum is largest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binary_entropy(middle) + middle * bits < rate else (low, middle)
    return low


@cache
def _levels(bits: int) -> tuple[Tensor, Tensor]:
    """Return thresholds and levels of the best quantiser of a normal variable."""
    limits = torch.special.ndtri(torch.linspace(0, 1, 2**bits + 1)[1:-1])
    levels = limits
    for _ in range(200):
        edges = torch.cat([torch.tensor([-9.0]), limits, torch.tensor([9.0])])
        density, share = (-edges.square() / 2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(edges)
        levels = -(density[1:] - density[:-1]) / (share[1:] - share[:-1]).clamp_min(1e-12)
        limits = (levels[1:] + levels[:-1]) / 2
    return limits, levels


def lloyd(values: Tensor, bits: int, scale: Tensor | None = None) -> tuple[Tensor, float]:
    """Return values quantised to 2^bits levels of a scale (their root mean square), and the bits."""
    if not values.numel():
        return values, 0.0
    limits, levels = _levels(bits)
    size = values.square().mean().sqrt().clamp_min(1e-20) if scale is None else scale
    codes = torch.bucketize(values / size, limits)
    return levels[codes] * size, entropy(codes) + 16


def uniform(values: Tensor, bits: int) -> tuple[Tensor, float]:
    """Return values quantised evenly between the smallest and the largest, the codes' bits and the codes' own order."""
    low, high = values.min(), values.max()
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-20)
    codes = ((values - low) / step).round()
    return codes * step + low, entropy(codes) + 32


def bf16(values: Tensor) -> tuple[Tensor, float]:
    """Return values in bf16, and the bits of their two planes of bytes."""
    rounded = values.to(torch.bfloat16)
    patterns = rounded.view(torch.int16).to(torch.int32) & 0xFFFF
    shifted = ((patterns << 1) & 0xFFFF) | (patterns >> 15)  # the exponent is a byte of its own
    return rounded.float(), entropy(shifted >> 8) + entropy(shifted & 0xFF)


def factor(columns: Tensor, bits: int) -> tuple[Tensor, float]:
    """Return a factor quantised column by column, each with the gain that keeps its projection, and the bits."""
    scale = columns.square().mean(dim=0, keepdim=True).sqrt().clamp_min(1e-20)
    limits, levels = _levels(bits)
    codes = torch.bucketize(columns / scale, limits)
    coded = levels[codes] * scale
    gain = columns.square().sum(dim=0) / (coded * columns).sum(dim=0).clamp_min(1e-30)
    return coded * gain, entropy(codes) + 16 * columns.shape[1]


def low_rank(deltas: Deltas, name: str, rank: int, bits: int) -> tuple[Tensor, float]:
    """Return the part of a delta of the first `rank` singular triples, with quantised factors, and the bits."""
    u, s, v = deltas.triples(name)
    rank = min(rank, len(s))
    if not rank:
        return torch.zeros_like(deltas[name]), 0.0
    root = s[:rank].sqrt()
    (left, first), (right, second) = factor(u[:, :rank] * root, bits), factor(v[:, :rank] * root, bits)
    return left @ right.T, first + second
