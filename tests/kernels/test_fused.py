"""Whole chunks in one call: the bits of the steps, and nothing changed where a stream is damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from support.backends import load

from deltapack.codecs.indices import encode_gaps
from deltapack.dtypes import BY_NAME
from deltapack.format.codecs import FIELDS
from deltapack.format.table import tile_lengths
from deltapack.kernels import Encoded, reference
from deltapack.kernels.layout import SPARE, TILE, Sparse

INDEXES = [("seeded", 0), ("gaps", 0), ("gaps", 3), ("gaps", 15)]


def chunk_of(index: str, shift: int, bits: int, length: int) -> tuple[Encoded, NDArray[np.uint32], NDArray[np.float32]]:
    """A chunk of random streams, its positions and values."""
    rng, lengths = np.random.default_rng(bits), np.array(tile_lengths(length), np.int64)
    keep, key = (1 << 32) // 10, 0x0123456789ABCDEF
    positions, counts = reference.sample_positions(key, keep, 16, lengths)
    stream = encode_gaps(positions, counts, shift) if index == "gaps" else b""
    low = -(1 << bits - 1)
    codes = rng.integers(low, -low, len(positions)).astype(np.int8) if bits > 1 else rng.choice([-1, 1], len(positions)).astype(np.int8)
    scales = rng.integers(0x3000, 0x4000, (-(-counts // 128)).sum()).astype(np.uint16)
    planes = scales.view(np.uint8).reshape(-1, 2).T.reshape(-1).copy()
    factor = np.float32(1 / 0.3)
    packed = reference.pack_codes(codes, bits)
    encoded = Encoded(index, shift, key, keep, 16, np.frombuffer(stream, np.uint8), bits, packed, planes, factor, counts, lengths)
    return encoded, positions, reference.code_values(packed, bits, scales, counts, factor)


def arrays_for(length: int) -> Sparse:
    return Sparse(np.empty(length + SPARE, np.uint32), np.empty(length + SPARE, np.float32))


@pytest.mark.parametrize("length", [300, TILE - 1, TILE + 1, 5 * TILE + 77])
@pytest.mark.parametrize("bits", FIELDS)
@pytest.mark.parametrize(("index", "shift"), INDEXES)
def test_fused_calls_give_the_bits_of_the_steps(index: str, shift: int, bits: int, length: int) -> None:
    loops = load("cpu")
    encoded, positions, values = chunk_of(index, shift, bits, length)
    found = loops.decode_encoded(encoded, arrays_for(length))
    assert found is not None and len(positions) > 0
    assert found[0].tobytes() == positions.tobytes()
    assert found[1].tobytes() == values.tobytes()
    for name in ("bf16", "f16", "f32"):
        rng = np.random.default_rng(length)
        start = rng.integers(0, 256, length * BY_NAME[name].itemsize, np.uint8).view(BY_NAME[name].storage)
        one, other = start.copy(), start.copy()
        assert loops.add_encoded(one, BY_NAME[name], encoded, arrays_for(length))
        reference.add_in_place(other, BY_NAME[name], [Sparse(positions, values)])
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(("index", "shift"), INDEXES)
def test_a_chunk_that_keeps_nothing(index: str, shift: int) -> None:
    """No elements, or the steps are asked: an empty Rice stream has no last byte to look at."""
    loops, elements = load("cpu"), np.array([0x8000], np.uint16)
    encoded, positions, _ = chunk_of(index, shift, 4, 1)
    assert len(positions) == 0
    found = loops.decode_encoded(encoded, arrays_for(1))
    assert found is None if shift else found is not None and len(found[0]) == len(found[1]) == 0
    assert loops.add_encoded(elements, BY_NAME["bf16"], encoded, arrays_for(1)) == (found is not None)
    assert elements[0] == 0x8000


def whole_and_damaged(index: str, shift: int, what: str, length: int) -> tuple[Encoded, Encoded]:
    """A chunk, and the same with one thing wrong."""
    encoded, positions, _ = chunk_of(index, shift, 4, length)
    if what == "counts":
        return encoded, replace(encoded, counts=encoded.counts + np.array([1, -1, 0]))
    if what == "stream":
        return encoded, replace(encoded, positions=encoded.positions[:-1])
    if what == "scale":
        scales = encoded.scales.copy()
        scales[[5, len(scales) // 2 + 5]] = 0x80, 0x7F
        return encoded, replace(encoded, scales=scales)
    counts, lengths = encoded.counts.copy(), encoded.lengths.copy()
    counts[-1] -= counts.sum() % 2 == 0  # so that half of the last byte is unused
    kept = positions[: counts.sum()]
    lengths[-1] = int(kept[-1]) + 1 - 2 * TILE
    stream = np.frombuffer(encode_gaps(kept, counts, shift) if index == "gaps" else b"", np.uint8)
    codes, groups = encoded.codes[: -(-len(kept) // 2)].copy(), int((-(-counts // 128)).sum())
    codes[-1] &= 0x0F
    scales = np.full(2 * groups, 0x3C, np.uint8)
    odd = replace(encoded, counts=counts, lengths=lengths, positions=stream, codes=codes, scales=scales)
    codes = codes.copy()
    codes[-1] |= 0x80
    return odd, replace(odd, codes=codes)


@pytest.mark.parametrize(
    ("index", "shift", "what"),
    [(*index, what) for index in INDEXES for what in ("counts", "code", "scale")]
    + [(*index, "stream") for index in INDEXES if index[0] == "gaps"],  # a seeded mask has no stream
)
def test_a_damaged_chunk_changes_nothing(index: str, shift: int, what: str) -> None:
    loops, length = load("cpu"), 3 * TILE
    whole, damaged = whole_and_damaged(index, shift, what, length)
    elements = np.arange(length, dtype=np.uint16)
    assert loops.decode_encoded(whole, arrays_for(length)) is not None
    assert loops.decode_encoded(damaged, arrays_for(length)) is None
    assert not loops.add_encoded(elements, BY_NAME["bf16"], damaged, arrays_for(length))
    assert np.array_equal(elements, np.arange(length, dtype=np.uint16))


def test_the_reference_goes_step_by_step() -> None:
    encoded, _, _ = chunk_of("seeded", 0, 4, 300)
    assert reference.decode_encoded(encoded, arrays_for(300)) is None
    assert not reference.add_encoded(np.zeros(300, np.uint16), BY_NAME["bf16"], encoded, arrays_for(300))
    assert not load("cpu").add_encoded(np.zeros(300, np.float64), BY_NAME["f64"], encoded, arrays_for(300))
    assert load("cpu").decode_encoded(replace(encoded, bits=0), arrays_for(300)) is None
    assert load("cpu").decode_encoded(replace(encoded, index="bitmap"), arrays_for(300)) is None
