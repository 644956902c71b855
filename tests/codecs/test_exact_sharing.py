"""Tables that chunks share: they save bytes, both backends learn the same ones, and chunks come back with them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from support.backends import load
from support.laws import examples

from deltapack import kernels
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.codecs.exact_sharing import Sample, learn_tables
from deltapack.codecs.exact_tables import NO_TABLES, SharedTables
from deltapack.dtypes import BY_NAME, DType
from deltapack.errors import FormatError

SHARED, SPARSE = 4, 3
BF16 = BY_NAME["bf16"]


def step(dtype: DType, length: int, share: float, seed: int) -> Sample:
    """Weights of which a share moves to a neighbour."""
    rng = np.random.default_rng(seed)
    width = 8 * dtype.itemsize
    base = ((1 << width - 3) + rng.integers(0, 1 << width - 4, length)).astype(f"u{dtype.itemsize}")
    tuned: NDArray[Any] = base + np.where(rng.random(length) < share, rng.choice([1, -1], length), 0).astype(base.dtype)
    return Sample(base.view(dtype.storage), tuned.view(dtype.storage), dtype)


def steps(dtype: DType, share: float, count: int = 40) -> list[Sample]:
    return [step(dtype, 300 + 97 * seed, share, seed) for seed in range(count)]


def encoded(samples: list[Sample], tables: SharedTables) -> list[bytes]:
    return [encode_exact_chunk(sample.base, sample.tuned, sample.dtype, tables) for sample in samples]


@pytest.mark.parametrize("name", ["bf16", "f32", "f16", "f8_e4m3fn", "i16", "u8", "f64"])
def test_sharing_takes_fewer_bytes_and_nothing_else_changes(name: str) -> None:
    samples = steps(BY_NAME[name], 0.02)
    tables = SharedTables(learn_tables(samples))
    alone, together = encoded(samples, NO_TABLES), encoded(samples, tables)
    assert sum(map(len, together)) + sum(map(len, tables.blobs)) < 0.9 * sum(map(len, alone))
    assert all(len(one) <= len(other) + 8 for one, other in zip(together, alone, strict=True))
    for data, sample in zip(together, samples, strict=True):
        back = decode_exact_chunk(data, sample.base, sample.dtype, len(sample.tuned), tables)
        assert back.tobytes() == sample.tuned.tobytes()


def test_backends_learn_and_write_the_same() -> None:
    samples = [*steps(BF16, 0.01, 12), *steps(BY_NAME["f32"], 0.3, 5), *steps(BY_NAME["i8"], 0.0001, 3)]
    found = []
    for backend in map(load, ("cpu", "reference")):
        with mock.patch.object(kernels, "active", return_value=backend):
            tables = SharedTables(learn_tables(iter(samples)))
            found.append((tables, encoded(samples, tables)))
    assert found[0] == found[1]


def test_groups_of_samples_get_tables_of_their_own() -> None:
    """Layers that hardly move, and others that move a lot: one table for all would suit none."""
    slow, fast = steps(BF16, 0.004, 60), steps(BF16, 0.7, 60)
    one, both = learn_tables(slow), learn_tables([*slow, *fast])
    assert len(one) == 1 and 2 <= len(both) <= 8
    tables = SharedTables(both)
    sizes = [sum(map(len, encoded(samples, tables))) for samples in (slow, fast)]
    assert sizes[0] < 1.02 * sum(map(len, encoded(slow, SharedTables(one))))
    assert sizes[1] < 1.02 * sum(map(len, encoded(fast, SharedTables(learn_tables(fast)))))


def test_no_tables_where_none_pay() -> None:
    assert learn_tables([]) == ()
    still = [Sample(sample.base, sample.base, BF16) for sample in steps(BF16, 0.1)]
    empty = np.zeros(0, BF16.storage)
    assert learn_tables([*still, Sample(empty, empty, BF16)]) == ()
    assert learn_tables(steps(BF16, 0.02, 1)) == ()


def test_few_numbers_of_a_large_chunk_share_tables_too() -> None:
    samples = [step(BF16, 1 << 17, 0.0001, seed) for seed in range(12)]
    tables = SharedTables(learn_tables(samples))
    found = encoded(samples, tables)
    assert {data[0] for data in found} == {SPARSE}
    assert sum(map(len, found)) < sum(map(len, encoded(samples, NO_TABLES))) - 12 * 4
    for data, sample in zip(found, samples, strict=True):
        assert decode_exact_chunk(data, sample.base, BF16, 1 << 17, tables).tobytes() == sample.tuned.tobytes()


def test_numbers_of_tables_begin_where_a_step_says() -> None:
    samples = steps(BF16, 0.02)
    blobs = learn_tables(samples)
    data = encoded(samples, SharedTables(blobs))[3]
    assert data[0] == SHARED
    moved = SharedTables((b"no table", *blobs), 1)
    assert decode_exact_chunk(data, samples[3].base, BF16, len(samples[3].base), moved).tobytes() == samples[3].tuned.tobytes()
    for missing in (NO_TABLES, SharedTables(blobs, len(blobs)), SharedTables(blobs, len(blobs) + 5)):
        with pytest.raises(FormatError) as caught:
            decode_exact_chunk(data, samples[3].base, BF16, len(samples[3].base), missing)
        assert caught.value.rule == "R9"


def test_tables_that_do_not_suit_are_left_alone() -> None:
    """Those of other numbers, those that are no table at all, and those without a symbol that occurs."""
    skewed = [Sample(one.base, np.where(one.base.view(np.uint16) < 0x2800, one.base, one.tuned), BF16) for one in steps(BF16, 0.9)]
    wide = SharedTables((b"", b"\x05\x05abcde", *learn_tables(skewed)))
    assert len(wide.blobs) == 3  # of several ranges of exponents, more than fp8 has
    samples = steps(BY_NAME["f8_e5m2"], 0.05)
    assert encoded(samples, wide) == encoded(samples, NO_TABLES)
    narrow = SharedTables(learn_tables(steps(BF16, 0.01)))
    rng = np.random.default_rng(0)
    far = rng.integers(0, 1 << 16, 500).astype(np.uint16).view(BF16.storage)
    sample = Sample(samples[0].base[:0], far, BF16)
    base = steps(BF16, 0.01)[3].base[:500]
    data = encode_exact_chunk(base, sample.tuned, BF16, narrow)
    assert data[0] != SHARED and decode_exact_chunk(data, base, BF16, 500, narrow).tobytes() == far.tobytes()


@examples(60)
@given(st.sampled_from(list(BY_NAME.values())), st.integers(1, 900), st.floats(0, 1), st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_every_bit_comes_back(dtype: DType, length: int, share: float, seed: int, other: int) -> None:
    """With tables that were learnt from other chunks."""
    tables = SharedTables(learn_tables([step(dtype, 700, share, other + more) for more in range(6)]))
    sample = step(dtype, length, share, seed)
    data = encode_exact_chunk(sample.base, sample.tuned, dtype, tables)
    assert decode_exact_chunk(data, sample.base, dtype, length, tables).tobytes() == sample.tuned.tobytes()
    assert len(data) <= sample.tuned.nbytes + 10
