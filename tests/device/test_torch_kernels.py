"""The torch operations against the numpy reference, on every device that is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import device_packs as packs
from support.codecs import FLOAT_CODES, SCALED
from support.laws import examples

from deltapack.codecs import indices, values
from deltapack.device import torch_kernels
from deltapack.dtypes import BY_NAME
from deltapack.format.codecs import VALUE_CODECS
from deltapack.format.table import tile_lengths
from deltapack.kernels import reference, rounding
from deltapack.kernels.layout import TILE, Sparse
from deltapack.kernels.reference.positions import gaps_of

FLOATS = ["f64", "f32", "f16", "bf16", "f8_e4m3fn", "f8_e5m2"]
KEYS = [0, 0x0123456789ABCDEF, 2**64 - 1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def hard_sums(count: int) -> np.ndarray[Any, Any]:
    """Any bits, and ordinary numbers of all sizes."""
    rng = np.random.default_rng(5)
    total = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    half = (rng.normal(0, 1, count // 2) * np.exp2(rng.integers(-30, 20, count // 2))).astype(np.float32)
    total[: count // 2] = half
    total[::7], total[1::97] = 0, np.inf
    return total


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_sums_and_conversions(source: str, target: str) -> None:
    one, other, count = BY_NAME[source], BY_NAME[target], 60_000
    base, total = packs.random_bits(count, one, 1), hard_sums(count)
    wanted = reference.add_sparse(base, one, other, np.arange(count, dtype=np.uint32), total)
    found = torch_kernels.add_sparse(packs.to_torch(base).to(DEVICE), one, other, to_device(total))
    assert np.array_equal(packs.unsigned(found), packs.unsigned(wanted))
    found = torch_kernels.convert(packs.to_torch(base).to(DEVICE), one, other)
    assert np.array_equal(packs.unsigned(found), packs.unsigned(rounding.convert(base, one, other)))


@pytest.mark.parametrize("name", ["f16", "bf16", "f8_e4m3fn", "f8_e5m2"])
def test_rounding_at_every_midpoint(name: str) -> None:
    """Every two neighbours of a narrow type, their middle, and the f32 next to it on both sides."""
    dtype = BY_NAME[name]
    codes = np.arange(1 << 8 * dtype.itemsize).astype(f"<u{dtype.itemsize}").view(dtype.storage)
    finite = np.sort(rounding.to_f32(codes, dtype)[np.isfinite(rounding.to_f32(codes, dtype))])
    middle = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    sums = np.concatenate([finite, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
    found = torch_kernels.convert(packs.to_torch(sums).to(DEVICE), BY_NAME["f32"], dtype)
    assert np.array_equal(packs.unsigned(found), packs.unsigned(rounding.from_f32(sums, dtype)))


@pytest.mark.parametrize("keep", [1, (1 << 32) // 1000, (1 << 32) // 10, 1 << 31, 2**32 - 1])
@pytest.mark.parametrize("key", KEYS)
def test_sampled_positions(keep: int, key: int) -> None:
    lengths = tile_lengths(2 * TILE + 77)
    for first in (0, 2**32 - 3):
        wanted, counts = reference.sample_positions(key, keep, first, np.array(lengths, np.int64))
        found, kept = torch_kernels.sample_positions(key, keep, first, lengths, DEVICE)
        assert np.array_equal(found.cpu().numpy(), wanted) and np.array_equal(kept.cpu().numpy(), counts)
    assert [len(part) for part in torch_kernels.sample_positions(key, keep, 0, [], DEVICE)] == [0, 0]


def test_too_few_samples_are_drawn_again() -> None:
    thresholds = to_device(reference.gap_thresholds(1 << 30).astype(np.int64))
    few, many = (torch_kernels._walk(3, thresholds, 1, 2, blocks, TILE)[0] for blocks in (1, 8192))
    assert int(few[:, -1].min()) >= TILE
    width = min(few.shape[1], many.shape[1])
    assert torch.equal(few[:, :width], many[:, :width])


@examples(40)
@given(st.floats(0.0005, 1), st.integers(0, 2**32 - 1), st.integers(0, 3 * TILE))
def test_stored_positions(density: float, seed: int, length: int) -> None:
    lengths = np.array(tile_lengths(length), np.int64)
    positions = np.flatnonzero(np.random.default_rng(seed).random(length) < density).astype(np.uint32)
    counts = np.bincount(positions >> 16, minlength=len(lengths)).astype(np.int64)
    gaps = gaps_of(positions, counts)
    found = torch_kernels.positions_from_gaps(to_device(gaps), to_device(counts), escapes=False)
    assert np.array_equal(found.cpu().numpy(), positions)
    stream = np.frombuffer(indices.encode_gaps(positions, counts, 0), np.uint8)
    ends = np.concatenate([[0], np.flatnonzero(stream != 255) + 1])[np.cumsum(counts)]
    found = torch_kernels.positions_from_gaps(to_device(stream.copy()), to_device(np.diff(ends, prepend=0)), escapes=True)
    assert np.array_equal(found.cpu().numpy(), positions)
    bits = np.frombuffer(indices.encode_bitmap(positions, length), np.uint8)
    assert np.array_equal(torch_kernels.positions_from_bits(to_device(bits.copy()), length).cpu().numpy(), positions)


@pytest.mark.parametrize("codec", [*FLOAT_CODES, *SCALED])
@pytest.mark.parametrize("counts", [[1], [127, 0, 128, 129], [0], [300, 1, 0, 77]])
def test_values(codec: str, counts: list[int]) -> None:
    rng, nnz = np.random.default_rng(1), sum(counts)
    raw = rng.integers(0, 256, 4 * nnz, np.uint8)
    dtype = VALUE_CODECS[codec].dtype
    if dtype is not None:
        floats = rounding.from_f32(rng.normal(0, 1, nnz).astype(np.float32), dtype).view(np.uint8)
        from deltapack.codecs.planes import split_planes

        streams = split_planes(floats.view(dtype.storage)), b""
        ready = floats
    else:
        ready = raw[: values.codes_raw_length(codec, nnz)]
        spare = nnz * VALUE_CODECS[codec].bits % 8
        ready[-1:] &= (1 << spare) - 1 if spare else 255
        scales = rounding.from_f32(rng.normal(0, 1, values.scales_raw_length(np.array(counts)) // 2).astype(np.float32), BY_NAME["bf16"])
        streams = ready.tobytes(), split_scales(scales)
    wanted = values.decode_values(codec, *streams, np.array(counts, np.int64), np.float32(1 / 0.3))
    held = np.zeros(0, np.uint8) if dtype is not None else np.ascontiguousarray(scales).view(np.uint8)
    factor = float(np.float32(1 / 0.3))
    found = torch_kernels.decode_values(codec, to_device(ready), to_device(held), to_device(np.array(counts)), nnz, factor)
    assert found.cpu().numpy().tobytes() == wanted.tobytes()


def split_scales(scales: np.ndarray[Any, Any]) -> bytes:
    from deltapack.codecs.planes import split_planes

    return split_planes(np.ascontiguousarray(scales).view("<u2"))


def test_the_sum_starts_from_positive_zero_and_keeps_its_order() -> None:
    one = to_device(np.array([3])), to_device(np.array([-0.0], np.float32))
    for terms in ([one], [one, one]):
        assert not torch.signbit(torch_kernels.sum_terms(5, terms)[1])[0]
    rows: list[tuple[list[int], list[float]]] = [([0, 2], [1e8, 1]), ([0], [1]), ([0, 1], [-1e8, 2])]
    parts = [(np.array(at), np.array(value, np.float32)) for at, value in rows]
    positions, total = torch_kernels.sum_terms(3, [(to_device(at), to_device(value)) for at, value in parts])
    wanted = reference.sum_terms(3, [Sparse(at.astype(np.uint32), value) for at, value in parts])
    assert positions.tolist() == wanted[0].tolist() and total.tolist() == wanted[1].tolist()
