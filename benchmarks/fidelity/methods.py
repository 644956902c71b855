"""What others do with a delta, without data: a function each from deltas and bits a weight to restored deltas and the bits taken.

Every method codes all matrices. Positions that a seed gives again are free, positions that depend on the delta cost their entropy, and
codes cost theirs; no method pays for a container. Below the smallest size that a method can have it gives that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.fidelity.coding import (
    Deltas,
    bf16,
    binary_entropy,
    density_for,
    entropy,
    generator_of,
    kept,
    largest,
    lloyd,
    low_rank,
    uniform,
)

__all__ = ["METHODS", "Method", "Restored"]

INT4 = 3.75
"""Bits of a 4-bit code of a normal variable, entropy-coded."""


@dataclass(frozen=True)
class Restored:
    """Deltas as a method gives them back.

    Attributes:
        values: By name, matrices.
        bits: Of all of them together.
    """

    values: dict[str, Tensor]
    bits: float


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: To print.
        code: From deltas, bits a weight and a seed to restored deltas.
        seeded: Whether it draws lots.
        tuned: Whether a factor is chosen afterwards, by the loss of a little text.
        sizes: Bits a weight that it is measured at in place of the study's; 0 is a size of its own.
    """

    name: str
    code: Callable[[Deltas, float, int], Restored]
    seeded: bool = False
    tuned: bool = False
    sizes: tuple[float, ...] = ()


Coded = tuple[Tensor, float]
Code = Callable[[Tensor], Coded]


def _each(code: Callable[[Deltas, str, float, int], Coded]) -> Callable[[Deltas, float, int], Restored]:
    def whole(deltas: Deltas, rate: float, seed: int) -> Restored:
        coded = {name: code(deltas, name, rate, seed) for name in deltas}
        return Restored({name: values for name, (values, _) in coded.items()}, sum(bits for _, bits in coded.values()))

    return whole


def _put(delta: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    restored = torch.zeros_like(delta)
    restored[mask] = values
    return restored


def _dare(code: Code, usual: float, rescale: bool = True) -> Callable[[Deltas, float, int], Restored]:
    """Random dropping, and kept values times 1/(1-p); the mask is free."""

    def one(deltas: Deltas, name: str, rate: float, seed: int) -> Coded:
        delta = deltas[name]
        sample = delta.flatten()[:: max(1, delta.numel() // 50_000)]
        cost = code(sample)[1] / sample.numel() if sample.numel() > 5000 else usual
        density = min(1.0, rate / (cost or usual))  # a sample of nothing but zeros costs nothing
        mask = kept(delta, density, name, seed)
        values, bits = code(delta[mask])
        return _put(delta, mask, values / density if rescale else values), bits

    return _each(one)


def _magnitude(deltas: Deltas, name: str, rate: float, _: int) -> Coded:
    """The largest differences of each tensor, in 4 bits, with their positions."""
    delta, cost = deltas[name], INT4
    for _ in range(2):  # the largest values fill 16 levels less evenly: the second time their bits are known
        mask = largest(delta, round(density_for(rate, cost) * delta.numel()))
        values, bits = uniform(delta[mask], 4)
        cost = bits / len(values)
    return _put(delta, mask, values), bits + binary_entropy(float(mask.float().mean())) * delta.numel()


def _top_signs(gained: bool) -> Callable[[Deltas, str, float, int], Coded]:
    """The signs of the largest differences and one scalar: their mean size, or with the gain that keeps the delta's projection."""

    def one(deltas: Deltas, name: str, rate: float, _: int) -> Coded:
        delta = deltas[name]
        mask = largest(delta, round(density_for(rate, 1.0) * delta.numel()))
        signs = delta.sign() * mask
        size = delta[mask].abs().mean() if not gained else delta.square().sum() / (signs * delta).sum().clamp_min(1e-30)
        return signs * size, entropy(signs) + 32

    return one


def _della(deltas: Deltas, name: str, rate: float, seed: int) -> Coded:
    """Random dropping where larger differences of a row are kept more often, each rescaled by its own rate; positions are stored."""
    delta = deltas[name]
    density = density_for(rate, INT4)
    spread = min(density, 1 - density)  # from half of the density to half more than it
    ranks = delta.abs().argsort(dim=1).argsort(dim=1) / max(1, delta.shape[1] - 1)
    chance = (density + spread * (ranks - 0.5)).clamp(1e-3, 1.0)
    mask = torch.rand(delta.shape, generator=generator_of(name, seed)) < chance
    values, bits = lloyd(delta[mask] / chance[mask], 4)
    return _put(delta, mask, values), bits + binary_entropy(float(mask.float().mean())) * delta.numel()


def _bitdelta(deltas: Deltas, name: str, _rate: float, _: int) -> Coded:
    """The sign and the mean magnitude."""
    delta = deltas[name]
    return torch.where(delta < 0, -1.0, 1.0) * delta.abs().mean(), delta.numel() + 32.0


def _sign_and_rest(deltas: Deltas, name: str, rate: float, _: int) -> Coded:
    """The sign and the mean magnitude, then the rest at low rank with factors of 4 bits."""
    delta = deltas[name]
    coarse, bits = _bitdelta(deltas, name, rate, 0)
    rest = Deltas({name: delta - coarse})
    rank = int((rate - 1) * delta.numel() / (INT4 * sum(delta.shape)))
    if rank < 1:
        return coarse, bits
    fine, more = low_rank(rest, name, rank, 4)
    return coarse + fine, bits + more


def _low_rank(deltas: Deltas, name: str, rate: float, _: int) -> Coded:
    delta = deltas[name]
    return low_rank(deltas, name, int(rate * delta.numel() / (INT4 * sum(delta.shape))), 4)


def _dense(bits: int) -> Callable[[Deltas, str, float, int], Coded]:
    """Every element at a few bits, rows scaled apart."""

    def one(deltas: Deltas, name: str, _rate: float, _: int) -> Coded:
        delta = deltas[name]
        scale = delta.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-20)
        values, taken = lloyd(delta, bits, scale)
        return values, taken + 16 * len(delta)

    return one


def _ultradelta(deltas: Deltas, rate: float, seed: int) -> Restored:
    """4-bit uniform values, then of each value the same share kept, thirds of the weights by spread a little apart, times 1/(1-p)."""
    order = sorted(deltas, key=lambda name: float(deltas[name].std()))
    coded = {name: uniform(deltas[name], 4) for name in order}
    density = density_for(rate, sum(bits for _, bits in coded.values()) / deltas.numel)
    values, bits, done = {}, 0.0, 0
    for name in order:
        delta, (even, _) = deltas[name], coded.pop(name)
        own = min(1.0, density * (0.9, 1.0, 1.1)[min(2, 3 * done // deltas.numel)])  # thirds differ by a tenth of what is kept
        done += delta.numel()
        mask = _share_of_each(even, own, generator_of(name, seed))
        bits += binary_entropy(own) * delta.numel() + entropy(_codes(even)[mask]) + 32
        values[name] = _put(delta, mask, even[mask] / own)
    return Restored(values, bits)


def _codes(coded: Tensor) -> Tensor:
    low, high = coded.min(), coded.max()
    return ((coded - low) / ((high - low) / 15).clamp_min(1e-20)).round()


def _share_of_each(coded: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a mask that keeps the same share of the elements of each value."""
    codes = _codes(coded).flatten()
    mixed = torch.randperm(codes.numel(), generator=generator)
    order = mixed[codes[mixed].argsort(stable=True)]  # by value, and mixed within a value
    places = torch.arange(codes.numel())
    mask = torch.zeros(codes.numel(), dtype=torch.bool)
    mask[order] = (places * share).floor() != ((places + 1) * share).floor()
    return mask.view(coded.shape)


METHODS = {
    method.name: method
    for method in (
        Method("DARE int4", _dare(lambda values: lloyd(values, 4), INT4), seeded=True),
        Method("DARE int3", _dare(lambda values: lloyd(values, 3), 2.83), seeded=True),
        Method("DARE bf16", _dare(bf16, 10.5), seeded=True),
        Method("DARE int4, not rescaled", _dare(lambda values: lloyd(values, 4), INT4, rescale=False), seeded=True),
        Method("DAREx int4, tuned factor", _dare(lambda values: lloyd(values, 4), INT4), seeded=True, tuned=True),
        Method("magnitude int4", _each(_magnitude)),
        Method("top-k sign (ComPEFT)", _each(_top_signs(gained=False))),
        Method("top-k sign, projection gain", _each(_top_signs(gained=True))),
        Method("DELLA int4", _each(_della), seeded=True),
        Method("BitDelta", _each(_bitdelta), sizes=(0.0,)),
        Method("sign + low rank (D-QRELO)", _each(_sign_and_rest), sizes=(2.0, 1.25)),
        Method("UltraDelta", _ultradelta, seeded=True),
        Method("low rank int4", _each(_low_rank)),
        Method("dense int2", _each(_dense(2)), sizes=(0.0,)),
        Method("dense int4", _each(_dense(4)), sizes=(0.0,)),
    )
}
"""By name. A method of one size is measured once, at that."""
