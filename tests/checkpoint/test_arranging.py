"""Elements of arranged tensors: whatever the grid, the boxes and the range, those that numpy's slices give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import random_tensor, write_file
from support.laws import examples

from deltapack.checkpoint import arranging, open_checkpoint
from deltapack.checkpoint.arranging import ArrangedSource, Tiles, rectangles
from deltapack.errors import CheckpointError
from deltapack.format.arrangement import Arrangement, Piece

Array = np.ndarray[Any, Any]


class Base:
    """Tensors in memory that count how they are read."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors, self.reads, self.elements = tensors, 0, 0

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out`, which must be what a file can be read into."""
        flat = self.tensors[name].reshape(-1)
        assert out.ndim == 1 and out.flags.c_contiguous and 0 <= start <= start + len(out) <= len(flat)
        self.reads, self.elements = self.reads + 1, self.elements + len(out)
        out[:] = flat[start : start + len(out)]

    def source(self, arrangement: Arrangement) -> ArrangedSource:
        """An arranged tensor of these."""
        return ArrangedSource.of(arrangement, {name: t.shape for name, t in self.tensors.items()}, self.read_into, Tiles())


def whole_of(arrangement: Arrangement, tensors: Mapping[str, Array]) -> Array:
    """The tensor by slices."""
    out = np.zeros(arrangement.shape, np.int32)
    corners = itertools.product(*(np.cumsum((0, *extents))[:-1] for extents in arrangement.grid))
    for (piece, cell), corner in zip(arrangement.cells, corners, strict=True):
        box = zip(piece.start, piece.extent_in(cell), strict=True)
        found = tensors[piece.name][tuple(slice(start, start + size) for start, size in box)]
        found = found.swapaxes(-1, -2) if piece.transposed else found
        out[tuple(slice(start, start + size) for start, size in zip(corner, cell, strict=True))] = found.reshape(cell)
    return out


@st.composite
def arrangements(draw: st.DrawFn) -> tuple[Arrangement, dict[str, Array]]:
    """A grid whose cells are boxes of tensors of more, of fewer and of as many dimensions, some of them transposed."""
    rank = draw(st.integers(1, 4))
    grid = tuple(tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))) for _ in range(rank))
    pieces, tensors = [], {}
    for number, cell in enumerate(itertools.product(*grid)):
        transposed = rank >= 2 and draw(st.booleans())
        dims = [*cell[:-2], *cell[:-3:-1]] if transposed else list(cell)
        while len(dims) > 1 + transposed and dims[0] == 1 and draw(st.booleans()):
            del dims[0]
        dims = [1] * draw(st.integers(0, 2)) + dims
        room = [draw(st.integers(0, 3)) for _ in dims]
        start = tuple(draw(st.integers(0, free)) for free in room)
        shape = [size + free for size, free in zip(dims, room, strict=True)]
        tensors[f"t{number}"] = np.random.default_rng(number).integers(0, 1 << 30, shape).astype(np.int32)
        pieces.append(Piece(f"t{number}", start, transposed))
    return Arrangement(grid, tuple(pieces)), tensors


@examples(60)
@given(arrangements(), st.sampled_from([64, 512, 1 << 24]), st.sampled_from([1, 2, 64]), st.data())
def test_any_range_of_any_arrangement(made: tuple[Arrangement, dict[str, Array]], block: int, narrow: int, data: st.DataObject) -> None:
    """Also where blocks and tiles hold a few elements."""
    arrangement, tensors = made
    wanted = whole_of(arrangement, tensors).reshape(-1)
    start = data.draw(st.integers(0, len(wanted)))
    stop = data.draw(st.integers(start, len(wanted)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arranging, "_BLOCK_BYTES", block)
        patch.setattr(arranging, "_NARROW", narrow)
        source = Base(tensors).source(arrangement)
        for first, last in ((start, stop), (0, len(wanted))):
            out = np.zeros(last - first, np.int32)
            source.read_into(first, out)
            assert (out == wanted[first:last]).all()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.data())
def test_rectangles_are_the_range(rows: int, columns: int, matrices: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, rows * columns * matrices))
    stop = data.draw(st.integers(start, rows * columns * matrices))
    numbers = np.arange(matrices * rows * columns).reshape(matrices, rows, columns)
    found = [numbers[m, top:bottom, left:right].reshape(-1) for m, top, bottom, left, right in rectangles(start, stop, rows, columns)]
    assert np.concatenate([np.zeros(0, int), *found]).tolist() == list(range(start, stop))


def test_transposed_tensors_are_not_read_once_a_chunk() -> None:
    """Chunk by chunk, each element is read once, many at a time."""
    tall = np.arange(3000 * 700, dtype=np.int32).reshape(3000, 700)
    base = Base({"t": tall})
    source = base.source(Arrangement(((700,), (3000,)), (Piece("t", (0, 0), True),)))
    out = np.concatenate([_read(source, start, 30_000) for start in range(0, tall.size, 30_000)])
    assert (out == tall.T.reshape(-1)).all()
    assert base.elements == tall.size and base.reads == 1


def test_columns_are_read_by_rows_where_they_are_few() -> None:
    """A narrow box of long rows is not read with all that lies between its rows."""
    wide = np.arange(50 * 4000, dtype=np.int32).reshape(50, 4000)
    base = Base({"t": wide})
    source = base.source(Arrangement(((50,), (7,)), (Piece("t", (0, 100)),)))
    assert (_read(source, 0, 350) == wide[:, 100:107].reshape(-1)).all()
    assert base.elements == 350
    half = base.source(Arrangement(((50,), (2000,)), (Piece("t", (0, 2000)),)))
    before = base.reads
    assert (_read(half, 0, 100_000) == wide[:, 2000:].reshape(-1)).all()
    assert base.reads == before + 1


def test_tiles_take_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arranging, "_BLOCK_BYTES", 400)
    tiles = Tiles(most_bytes=1000)
    tensor = np.arange(100 * 90, dtype=np.int32).reshape(100, 90)
    base = Base({"t": tensor})
    source = ArrangedSource.of(Arrangement(((90,), (100,)), (Piece("t", (0, 0), True),)), {"t": (100, 90)}, base.read_into, tiles)
    assert (_read(source, 0, 9000) == tensor.T.reshape(-1)).all()
    assert 0 < sum(tile.nbytes for tile in tiles._kept.values()) <= 1000


def _read(source: ArrangedSource, start: int, count: int) -> Array:
    out = np.zeros(min(count, int(np.prod(source.shape)) - start), np.int32)
    source.read_into(start, out)
    return out


def test_a_checkpoint_with_arranged_tensors(tmp_path: Path) -> None:
    """It hides tensors of the same name, says where an arranged one is at home, and is closed with its files."""
    tensors = {"a": random_tensor(1, (4, 6), "bf16"), "b": random_tensor(2, (4, 6), "bf16"), "w": random_tensor(3, (3, 2), "f32")}
    with open_checkpoint(write_file(tmp_path / "base.safetensors", tensors)) as checkpoint:
        seen = checkpoint.with_arranged(
            {
                "ab": Arrangement(((1, 1), (4,), (6,)), (Piece("b", (0, 0)), Piece("a", (0, 0)))),
                "w": Arrangement(((2,), (3,)), (Piece("w", (0, 0), True),)),
            }
        )
        assert list(seen.tensors) == ["a", "ab", "b", "w"] and list(checkpoint.tensors) == ["a", "b", "w"]
        assert (seen.tensors["ab"].shape, seen.tensors["ab"].dtype.name, seen.home_of("ab"), seen.home_of("a")) == (
            (2, 4, 6),
            "bf16",
            "b",
            "a",
        )
        assert seen.files is checkpoint and checkpoint.files is checkpoint
        assert seen.read("ab").tobytes() == tensors["b"].raw + tensors["a"].raw
        assert (seen.read("w") == checkpoint.read("w").reshape(3, 2).T.reshape(-1)).all()
        assert seen.file_range("ab", 0) is None and seen.file_range("a", 0) == checkpoint.file_range("a", 0)
        with pytest.raises(CheckpointError, match="no such range"):
            seen.read("ab", 0, 49)
    for name in ("ab", "a"):
        with pytest.raises(CheckpointError, match="closed"):
            seen.read(name)
