"""Terms that are a product of two factors (spec/codecs/factors.md), for make_vectors.py only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vectors import scalar
from vectors.assemble import Blob, Json, pack_bits, stream


@dataclass
class Factors:
    """A term of factors: its index entry and what it adds to each element. It stands where a `Term` does."""

    u: Sequence[Sequence[int]]  # codes of each column, one a row of the tensor
    v: Sequence[Sequence[int]]  # the same, one a column of the tensor
    scales: tuple[list[int], list[int]]  # of both, f32 bits
    bits: int = 4
    factor: int = 0x3F800000
    spoil: Callable[[bytes], bytes] | None = None  # edits the raw bytes
    blob: Blob | None = None  # in place of the one that follows
    index: str = "all"
    extra: tuple[tuple[str, Any], ...] = ()  # more keys of the entry, or other values
    features = frozenset(("factors",))

    def with_factor(self, factor: str) -> Factors:
        """Itself: it keeps all elements (section 6.1)."""
        return self

    def raw(self) -> bytes:
        """The bytes of the blob, before the zstd stage."""
        scales = b"".join(bits.to_bytes(4, "little") for row in self.scales for bits in row)
        raw = scales + b"".join(pack_bits(list(codes), self.bits) for codes in (*self.u, *self.v))
        return self.spoil(raw) if self.spoil else raw

    def entry(self, common: int) -> Json:
        """The index entry, with a `Blob` in place of its reference."""
        out: Json = {"index": self.index, "values": "factors", "factor": f"{self.factor:08x}", "nnz": common}
        out |= {"rank": len(self.u), "bits": self.bits, "blob": self.blob or Blob(stream(self.raw())[0])}
        return out | dict(self.extra)

    def added(self, common: int, weight: float) -> dict[int, float]:
        """Position to value (section 6.1)."""
        factor = scalar.round_f32(scalar.number("f32", self.factor) * scalar.round_f32(weight))
        us, vs = [], []
        for k, (u, v) in enumerate(zip(self.u, self.v, strict=True)):
            su, sv = (scalar.number("f32", bits[k]) for bits in self.scales)
            su = scalar.round_f32(su * factor)
            us.append([scalar.round_f32((2 * code + 1) * su) for code in u])
            vs.append([scalar.round_f32((2 * code + 1) * sv) for code in v])
        width, known = len(self.v[0]) if self.v else common, {}
        rows, columns = list(zip(*us, strict=True)), list(zip(*vs, strict=True))
        out = dict.fromkeys(range(common), 0.0)
        for p in out if us else ():
            pair = rows[p // width], columns[p % width]
            if pair not in known:
                known[pair] = product(*pair)
            out[p] = known[pair]
        return out


def product(row: Sequence[float], column: Sequence[float]) -> float:
    """The sum of products, from first to last."""
    value = scalar.round_f32(row[0] * column[0])
    for u, v in zip(row[1:], column[1:], strict=True):
        value = scalar.round_f32(value + scalar.round_f32(u * v))
    return value


def factors(shape: Sequence[int], rank: int, bits: int = 4, seed: int = 3, size: float = 0.01) -> Factors:
    """Random codes, for a tensor of this shape."""
    rng, half = random.Random(seed), 1 << bits - 1
    rows, columns = math.prod(shape[:-1]), shape[-1]
    u, v = ([[rng.randrange(-half, half) for _ in range(count)] for _ in range(rank)] for count in (rows, columns))
    scales = tuple([scalar.element("f32", rng.gauss(0, size / half)) for _ in range(rank)] for size in (size, 1.0))
    return Factors(u, v, (scales[0], scales[1]), bits)
