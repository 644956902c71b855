"""Packs whose matrices have factors, and what they say, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import deltapack
from deltapack.codecs.chunk import decode_term_chunk, term_chunks
from deltapack.format.digest import CHUNK
from deltapack.format.frames import unpack_stream
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.packing import compressing, sharing
from deltapack.packing.directions import directions_of
from deltapack.packing.factoring import quantise_factors
from deltapack.packing.inputs import Inputs
from deltapack.packing.planning import DeltaPlan, PackPlan
from deltapack.packing.spectrum import spectrum_of
from support.builders import Tensor, add_by_hand, write_file
from support.fixtures import as_weights

F32 = NDArray[np.float32]


def with_factors(inputs: Inputs, plan: PackPlan, rank: int, bits: int, residual: bool) -> PackPlan:
    """A plan that takes a product of factors off a matrix before the sparse term."""
    if not isinstance(plan, DeltaPlan) or len(plan.tensor.shape) < 2:
        return plan
    columns = plan.tensor.shape[-1]
    rows = plan.common // columns
    one = Tensor(plan.base.dtype.name, inputs.base.files.read(plan.base.name, 0, plan.common)).f64
    other = Tensor(plan.tensor.dtype.name, inputs.finetuned.read(plan.tensor.name, 0, plan.common)).f64
    delta = (other - one).astype(np.float32)
    spectrum = spectrum_of(lambda start, stop: delta[start:stop], rows, columns, rank, plan.key)
    if spectrum is None or not len(spectrum.values):
        return plan

    def multiply(start: int, stop: int, right: F32, scale: np.float32) -> F32:
        product: F32 = ((delta[start:stop] * scale).reshape(-1, columns) @ right.T).astype(np.float32)
        return product

    directions = directions_of(multiply, spectrum, rank)
    return plan if directions is None else replace(plan, factors=quantise_factors(directions, rank, bits), residual=residual)


def factor_pack(
    folder: Path,
    base: dict[str, Tensor],
    tuned: dict[str, Tensor],
    name: str = "pack",
    *,
    rank: int = 3,
    bits: int = 4,
    residual: bool = True,
    workers: int | None = None,
    **recipe: Any,
) -> Path:
    """Write base and fine-tune as bare files and pack them, matrices with factors."""
    paths = folder / "base.safetensors", folder / f"{name}.safetensors"
    for path, tensors in zip(paths, (base, tuned), strict=True):
        write_file(path, tensors)

    def planned(inputs: Inputs, workers: int) -> tuple[Iterator[PackPlan], tuple[bytes, ...]]:
        plans, tables = sharing.planned(inputs, workers)
        return (with_factors(inputs, plan, rank, bits, residual) for plan in plans), tables

    options: dict[str, Any] = {"drop_rate": 0.8, "values": "int4"} | recipe
    made = deltapack.Recipe(overrides=as_weights(tuned), **options)
    with mock.patch.object(compressing, "planned", planned):
        deltapack.compress(*paths, folder / f"{name}.dpk", recipe=made, workers=workers, force=True)
    return folder / f"{name}.dpk"


def fields(data: bytes, count: int, bits: int) -> NDArray[np.int64]:
    """Signed numbers of some bits each, the low bits of a byte first; what is left of the last byte is 0."""
    digits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    assert not digits[count * bits :].any()
    numbers: NDArray[np.int64] = digits[: count * bits].reshape(count, bits) @ (1 << np.arange(bits))
    return np.where(numbers >> bits - 1, numbers - (1 << bits), numbers)


def factors_by_hand(raw: bytes, rows: int, columns: int, rank: int, bits: int, factor: float) -> tuple[F32, F32]:
    """The factors `[rank, rows]` and `[rank, columns]` that a blob holds, as spec/codecs/factors.md says."""
    scales = np.frombuffer(raw, "<f4", 2 * rank)
    at, parts = 8 * rank, []
    for count, sizes in ((rows, scales[:rank] * np.float32(factor)), (columns, scales[rank:])):
        size = -(-count * bits // 8)
        lines = [fields(raw[at + k * size : at + (k + 1) * size], count, bits) for k in range(rank)]
        parts.append((2 * np.array(lines) + 1).astype(np.float32) * sizes[:, None])
        at += rank * size
    assert at == len(raw)
    return parts[0], parts[1]


def values_by_hand(reader: PackReader, entry: Entry, term: Term, factor: float) -> F32:
    """The values of a term, one for each common element; NaN where it keeps none."""
    if not term.is_factors:
        out = np.full(entry.common, np.nan, np.float32)
        for chunk in range(-(-entry.common // CHUNK)):
            positions, values = decode_term_chunk(term_chunks(reader, entry, term), term, chunk, np.float32(factor))
            out[positions.astype(np.int64) + chunk * CHUNK] = values
        return out
    columns = entry.shape[-1]
    rows = entry.common // columns
    size = term.rank * (8 + -(-rows * term.bits // 8) + -(-columns * term.bits // 8))
    left, right = factors_by_hand(unpack_stream(reader.plain_blob(term.blob), size), rows, columns, term.rank, term.bits, factor)
    total = left[0][:, None] * right[0]
    for u, v in zip(left[1:], right[1:], strict=True):
        total = total + u[:, None] * v
    flat: F32 = total.reshape(-1)
    return flat


def restored_by_hand(pack: Path, base: dict[str, Tensor], weight: float = 1.0, rescale: float | None = None) -> dict[str, Tensor]:
    """What the terms of a pack make of the tensors of the base that have such."""
    out = {}
    with PackReader(pack) as reader:
        for entry in reader.index.entries:
            if not entry.terms or entry.base is None or entry.dtype is None:
                continue
            total, kept = np.zeros(entry.common, np.float32), np.zeros(entry.common, np.bool_)
            for term in entry.terms:
                own = term.factor if rescale is None or term.index == "all" else rescale
                values = values_by_hand(reader, entry, term, float(np.float32(own) * np.float32(weight)))
                there = ~np.isnan(values)
                total[there] += values[there]
                kept |= there
            positions, held = np.flatnonzero(kept), base[entry.base.name]
            flat = Tensor(held.dtype, held.bits.reshape(-1)[: entry.common])
            out[entry.name] = add_by_hand(flat, positions, total[positions], entry.dtype.name, (entry.common,))
    return out
