"""The table of a chunked blob."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.errors import DeltapackError, FormatError
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.table import ChunkRecord, Layout, tile_lengths

SIZES = [0, 1, 2, 63, 64, 65, TILE - 1, TILE, TILE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + TILE + 5]


@pytest.mark.parametrize("numel", SIZES)
def test_tiles_and_chunks_cover_the_tensor(numel: int) -> None:
    layout = Layout(numel, 1, has_counts=True)
    tiles = [tile_lengths(layout.chunk_length(chunk)) for chunk in range(layout.chunks)]
    assert sum(map(sum, tiles)) == numel
    assert all(0 < length <= TILE for lengths in tiles for length in lengths)
    assert all(length == TILE for lengths in tiles for length in lengths[:-1])
    assert layout.table_bytes == sum(8 + 8 + 4 * len(lengths) for lengths in tiles)


@given(st.sampled_from(SIZES), st.integers(1, 3), st.booleans(), st.data())
def test_round_trip(numel: int, streams: int, has_counts: bool, data: st.DataObject) -> None:
    layout = Layout(numel, streams, has_counts)
    records = []
    for chunk in range(layout.chunks):
        raw = [data.draw(st.integers(0, 2**32 - 1)) for _ in range(streams)]
        stored = [data.draw(st.integers(0, size)) for size in raw]
        counts = [data.draw(st.integers(0, length)) for length in tile_lengths(layout.chunk_length(chunk)) if has_counts]
        lengths = tuple(zip(stored, raw, strict=True))
        records.append(ChunkRecord(data.draw(st.integers(0, 2**64 - 1)), lengths, tuple(counts)))
    table = layout.encode(records)
    payload, nnz = sum(record.payload_bytes for record in records), sum(sum(record.counts) for record in records)
    assert len(table) == layout.table_bytes
    assert layout.decode(table, payload, nnz) == tuple(records)
    with pytest.raises(FormatError, match="fill"):
        layout.decode(table, payload + 1, nnz)
    if has_counts:
        with pytest.raises(FormatError, match="another number"):
            layout.decode(table, payload, nnz + 1)


@given(st.binary(min_size=28, max_size=28), st.integers(0, 100), st.integers(0, 100))
def test_any_bytes_are_refused_or_consistent(table: bytes, payload: int, nnz: int) -> None:
    layout = Layout(TILE + 1, 1, has_counts=True)
    table = table[: layout.table_bytes]
    try:
        (record,) = layout.decode(table, payload, nnz)
    except DeltapackError as error:
        assert error.rule == "R8"
    else:
        assert record.payload_bytes == payload
        assert sum(record.counts) == nnz


@pytest.mark.parametrize(("stored", "raw", "count"), [(5, 4, 1), (4, 4, 2), (2**32 - 1, 4, 1), (4, 4, 2**32 - 1), (3, 4, 1), (4, 4, 0)])
def test_impossible_tables(stored: int, raw: int, count: int) -> None:
    table = struct.pack("<QIII", 0, stored, raw, count)
    with pytest.raises(FormatError) as caught:
        Layout(1, 1, has_counts=True).decode(table, 4, 1)
    assert caught.value.rule == "R8"
