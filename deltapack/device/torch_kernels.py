"""The loops over tiles as plain torch operations, for any device that torch knows: same bits as `deltapack.kernels.reference`.

Everything is integer arithmetic, but for one f32 product per group, one per value and the sums, each its own operation, so that
nothing can be fused. Elements travel as integers of their width (`BITS`); `torch.bfloat16` and the float8 types are never computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from deltapack.dtypes import DType
from deltapack.format.codecs import VALUE_CODECS
from deltapack.kernels.layout import ESCAPE, GROUP, TILE
from deltapack.kernels.reference.positions import gap_thresholds

__all__ = [
    "BITS",
    "add_sparse",
    "convert",
    "decode_values",
    "philox",
    "positions_from_bits",
    "positions_from_gaps",
    "sample_positions",
    "sum_terms",
    "to_f32",
    "unpack",
]

Tensor = torch.Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type that holds an element of so many bytes."""
_FLOAT = {"f64": torch.float64, "f32": torch.float32}
_NAN = {"f64": 0x7FF8000000000000, "f32": 0x7FC00000, "f16": 0x7E00, "bf16": 0x7FC0, "f8_e4m3fn": 0x7F, "f8_e5m2": 0x7E}
_NARROW = {"f16": (5, 10), "f8_e4m3fn": (4, 3), "f8_e5m2": (5, 2)}
"""Bits of exponent and mantissa."""
_BEYOND = {"f16": 0x7C00, "f8_e4m3fn": 0x7E, "f8_e5m2": 0x7B}
"""What overflow becomes: infinity, or the largest finite number of the 8-bit types."""
_MAGNITUDE = 0x7FFFFFFF
_SAMPLES_AT_ONCE = 1 << 20
TRITS = (1, 3, 9, 27, 81)
"""What the trits of a byte weigh."""


def sample_positions(key: int, keep: int, first_tile: int, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Regenerate the seeded mask of consecutive tiles.

    Args:
        key: Mask key, 64 bits.
        keep: K, the density times 2^32, in [1, 2^32).
        first_tile: Number of the first tile in its tensor.
        lengths: Elements of each tile.
        device: Where to.

    Returns:
        Positions `[nnz] int64` from the start of the first tile, increasing, and counts `[tiles] int64`.
    """
    extent, density = max(lengths, default=0), keep / 2**32
    steps = max(1.0, extent * density / (1 - (1 - density) ** ESCAPE))
    blocks = int((steps + 6 * steps**0.5) / 4) + 2
    at_once = max(1, _SAMPLES_AT_ONCE // (4 * blocks))
    thresholds = torch.tensor(gap_thresholds(keep).astype("int64"), device=device)
    parts, counts = [], []
    for start in range(0, len(lengths), at_once):
        ends = torch.tensor(lengths[start : start + at_once], dtype=torch.int64, device=device)[:, None]
        cursor, kept = _walk(key, thresholds, first_tile + start, len(ends), blocks, extent)
        kept &= cursor <= ends
        offset = torch.arange(start, start + len(ends), dtype=torch.int64, device=device)[:, None] * TILE - 1
        parts.append((cursor + offset)[kept])
        counts.append(kept.sum(dim=1))
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(parts or [empty]), torch.cat(counts or [empty])


def _walk(key: int, thresholds: Tensor, tile: int, tiles: int, blocks: int, extent: int) -> tuple[Tensor, Tensor]:
    """Return the cursor after each sample and whether the sample kept an element, `[tiles, samples]`; all pass `extent`."""
    numbers = torch.arange(tile, tile + tiles, dtype=torch.int64, device=thresholds.device)[:, None]
    while True:
        samples = philox(key, numbers, torch.arange(blocks, dtype=torch.int64, device=thresholds.device)[None, :])
        gaps = torch.searchsorted(thresholds, samples.reshape(tiles, -1), right=True)
        kept = gaps < ESCAPE
        cursor = torch.cumsum(gaps + kept, dim=1)
        if int(cursor[:, -1].min()) >= extent:
            return cursor, kept
        blocks *= 2


def philox(key: int, tile: Tensor, block: Tensor, third: int = 0, rounds: int = 10) -> Tensor:
    """Return Philox4x32 samples `[*shape, 4]` for counters (block, tile, third, 0); products of 64 bits wrap, which keeps their bits."""
    mask = 0xFFFFFFFF
    c0, c1 = (block & mask) + 0 * tile, (tile & mask) + 0 * block
    c2, c3 = torch.full_like(c0, third), torch.zeros_like(c0)
    k0, k1 = key & mask, key >> 32
    for _ in range(rounds):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack([c0, c1, c2, c3], dim=-1)


def positions_from_gaps(gaps: Tensor, items: Tensor, escapes: bool) -> Tensor:
    """Return the positions `[nnz] int64` of consecutive tiles, from the start of the first.

    Args:
        gaps: `[sum of items]` gaps of all tiles.
        items: `[tiles] int64` gaps of each tile.
        escapes: Whether 255 means that nothing is kept.
    """
    steps = gaps.to(torch.int64)
    kept = steps != ESCAPE if escapes else torch.ones_like(steps, dtype=torch.bool)
    cursor = torch.cumsum(steps + kept, dim=0)
    starts = torch.cumsum(items, dim=0) - items
    before = torch.cat([torch.zeros(1, dtype=torch.int64, device=gaps.device), cursor])[starts]
    offset = torch.arange(len(items), dtype=torch.int64, device=gaps.device) * TILE - before - 1
    return (cursor + torch.repeat_interleave(offset, items, output_size=len(gaps)))[kept]


def positions_from_bits(stream: Tensor, length: int) -> Tensor:
    """Return the places `[nnz] int64` of the ones among the first `length` bits of `[n] uint8`, least significant first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=stream.device)
    bits = (stream[:, None] >> shifts) & 1
    return torch.nonzero(bits.reshape(-1)[:length]).reshape(-1)


def decode_values(codec: str, codes: Tensor, scales: Tensor, counts: Tensor, nnz: int, factor: float) -> Tensor:
    """Return the values `[nnz] f32` of consecutive tiles (spec/06-arithmetic.md section 6.1), of codes that groups have scales for.

    Args:
        codec: Value codec.
        codes: `[n] uint8` packed codes, or float codes as little-endian bytes.
        scales: `[2 groups] uint8` bf16 scales as little-endian bytes; empty for float codecs.
        counts: `[tiles] int64` kept elements of each tile.
        nnz: Their sum.
        factor: What is multiplied with, an f32 held in a Python float.
    """
    row, scalar = VALUE_CODECS[codec], torch.tensor(factor, dtype=torch.float32, device=codes.device)
    if not row.scaled:
        return _FLOAT_CODES[row.form](codes)[:nnz] * scalar
    steps = _wide_bf16(scales.view(torch.int16)) * scalar
    return unpack(row.form, row.bits, codes, nnz).to(torch.float32) * steps[_groups(counts, nnz)]


_FLOAT_CODES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda codes: codes.view(torch.float32),
    "f16": lambda codes: codes.view(torch.float16).to(torch.float32),
    "bf16": lambda codes: _wide_bf16(codes.view(torch.int16)),
}
"""Ways to read a code that is a float, `deltapack.format.codecs.ValueCodec.form`."""


def unpack(form: str, bits: int, codes: Tensor, nnz: int) -> Tensor:
    """Return codes `[nnz] int32` of `[n] uint8`; of levels a byte each."""
    wide = codes.to(torch.int32)[:, None]
    if form == "trits":
        trits = torch.div(wide, torch.tensor(TRITS, dtype=torch.int32, device=codes.device), rounding_mode="floor") % 3
        return (trits - 3 * (trits >> 1)).reshape(-1)[:nnz]
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
    fields = ((wide >> shifts) & ((1 << bits) - 1)).reshape(-1)[:nnz]
    half = 1 << bits - 1
    return 1 - 2 * fields if form == "sign" else (fields ^ half) - half


def _groups(counts: Tensor, nnz: int) -> Tensor:
    """Return the number of each kept element's group: 128 elements, never across tiles."""
    groups = -(-counts // GROUP)
    first_kept, first_group = torch.cumsum(counts, 0) - counts, torch.cumsum(groups, 0) - groups
    within = torch.arange(nnz, device=counts.device) - torch.repeat_interleave(first_kept, counts, output_size=nnz)
    return torch.repeat_interleave(first_group, counts, output_size=nnz) + within // GROUP


def sum_terms(length: int, terms: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Add sparse terms in order, in f32, starting from +0.0; see `deltapack.kernels.reference.sum_terms`."""
    if len(terms) == 1:
        return terms[0][0], terms[0][1] + 0.0
    device = terms[0][0].device
    total = torch.zeros(length, dtype=torch.float32, device=device)
    touched = torch.zeros(length, dtype=torch.bool, device=device)
    for positions, values in terms:
        total[positions] = total[positions] + values
        touched[positions] = True
    union = torch.nonzero(touched).reshape(-1)
    return union, total[union]


def add_sparse(kept: Tensor, source: DType, target: DType, total: Tensor) -> Tensor:
    """Return elements plus a sum, rounded once (spec/06-arithmetic.md section 6.2).

    Args:
        kept: `[n]` elements of `source` as integers of their width.
        source: Type of the base.
        target: Type of the result.
        total: `[n] f32`.

    Returns:
        `[n]` elements of `target` as integers of their width.
    """
    if "f64" in (source.name, target.name):
        return _from_f64(_to_f64(kept, source) + total.to(torch.float64), target)
    return _from_f32(to_f32(kept, source) + total, target)


def convert(elements: Tensor, source: DType, target: DType) -> Tensor:
    """Return elements of `source` as `target` (spec/06-arithmetic.md section 6.3), both as integers of their width."""
    if source == target:
        return elements
    if source.name == "f64":
        return _from_f64(_to_f64(elements, source), target)
    return _from_f32(to_f32(elements, source), target)


def to_f32(elements: Tensor, dtype: DType) -> Tensor:
    """Return elements of a float type other than f64, given as integers, as f32; exact."""
    if dtype.name == "f32":
        return elements.view(torch.float32)
    if dtype.name == "bf16":
        return _wide_bf16(elements)
    if dtype.name == "f16":
        return elements.view(torch.float16).to(torch.float32)
    return _f8_values(dtype.name, elements.device)[elements.to(torch.int64)]


def _to_f64(elements: Tensor, dtype: DType) -> Tensor:
    return elements.view(torch.float64) if dtype.name == "f64" else to_f32(elements, dtype).to(torch.float64)


def _wide_bf16(elements: Tensor) -> Tensor:
    return (elements.to(torch.int32) << 16).view(torch.float32)


def _f8_values(name: str, device: torch.device) -> Tensor:
    """Return the value of each of the 256 codes."""
    exponent_bits, mantissa_bits = _NARROW[name]
    code = torch.arange(256, dtype=torch.int32)
    magnitude = code & 0x7F
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    normal = ((exponent + 127 - bias) << 23 | mantissa << 23 - mantissa_bits).view(torch.float32)
    value = torch.where(exponent == 0, mantissa.to(torch.float32) * 2.0 ** (1 - bias - mantissa_bits), normal)
    if name == "f8_e4m3fn":
        value[magnitude == 0x7F] = torch.nan
    else:
        value[exponent == 31] = torch.where(mantissa[exponent == 31] == 0, torch.inf, torch.nan)
    return torch.where(code < 128, value, -value).to(device)


def _from_f64(values: Tensor, dtype: DType) -> Tensor:
    return _canonical(values, dtype) if dtype.name == "f64" else _from_f32(values.to(torch.float32), dtype)


def _from_f32(values: Tensor, dtype: DType) -> Tensor:
    if dtype.name == "f64":
        return _canonical(values.to(torch.float64), dtype)
    if dtype.name == "f32":
        return _canonical(values, dtype)
    bits = values.view(torch.int32)
    magnitude = bits & _MAGNITUDE
    rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16 if dtype.name == "bf16" else _round_narrow(magnitude, dtype.name)
    width = 8 * dtype.itemsize
    signed = rounded | ((bits >> 31) & 1) << width - 1
    signed = torch.where(magnitude > 0x7F800000, _NAN[dtype.name], signed)
    # int16 holds bits above 0x7FFF as negative numbers.
    signed = torch.where(signed >= 1 << 15, signed - (1 << 16), signed) if width == 16 else signed
    return signed.to(BITS[dtype.itemsize])


def _round_narrow(magnitude: Tensor, name: str) -> Tensor:
    """Round the magnitudes of f32, given as bits, to a type with fewer bits of exponent: nearest, ties to even."""
    exponent_bits, mantissa_bits = _NARROW[name]
    bias, drop = (1 << exponent_bits - 1) - 1, 23 - mantissa_bits
    normal = ((magnitude + ((1 << drop - 1) - 1) + ((magnitude >> drop) & 1)) >> drop) - (127 - bias << mantissa_bits)
    # Adding the number whose last bit weighs as much as the type's smallest one rounds a subnormal result.
    magic = torch.tensor(2.0 ** (24 - bias - mantissa_bits), dtype=torch.float32, device=magnitude.device)
    small = (magnitude.view(torch.float32) + magic).view(torch.int32) - magic.view(torch.int32)
    rounded = torch.where(magnitude < 128 - bias << 23, small, normal)
    return torch.clamp(rounded, max=_BEYOND[name])


def _canonical(values: Tensor, dtype: DType) -> Tensor:
    integers = values.view(BITS[dtype.itemsize])
    return torch.where(torch.isnan(values), torch.tensor(_NAN[dtype.name], dtype=integers.dtype, device=values.device), integers)
