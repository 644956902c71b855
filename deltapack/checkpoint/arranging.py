"""Elements of an arranged tensor, read from the boxes of tensors that it is made of.

Every tensor is seen as a stack of matrices. A range of elements is cut into rectangles of these, each rectangle by the grid into blocks of
cells, and each block is read from its piece's matrix by whole rows where that costs little. A transposed piece is read in tiles that
threads share, as the rows of one chunk are a few elements of every row there.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from deltapack.forks import forking_lock
from deltapack.format.arrangement import Arrangement, Piece

__all__ = ["ArrangedSource", "Tiles", "rectangles"]

Elements = npt.NDArray[np.generic]
ReadInto = Callable[[str, int, Elements], None]
"""Fills an array with the elements of a tensor of the base from some element on."""

_BLOCK_BYTES = 1 << 24
"""Bytes of a tile or of a temporary block."""
_WASTE = 8
"""Whole rows are read for a part of them, unless they are so many times longer."""
_STRIP = 64
"""Rows of a tile that are transposed at a time."""
_NARROW = 64
"""Columns of a tile, at least, where there are as many."""


def rectangles(start: int, stop: int, rows: int, columns: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Cut elements [start, stop) of a stack of matrices into parts of rows and whole rows.

    Yields:
        Number of the matrix, first and end row, first and end column; one after the other they are the range.
    """
    size = rows * columns
    while start < stop:
        matrix, first = divmod(start, size)
        end = min(stop - matrix * size, size)
        row, column = divmod(first, columns)
        if column or end - first < columns:
            end = min(end, (row + 1) * columns)
            yield matrix, row, row + 1, column, column + end - first
        else:
            end -= end % columns
            yield matrix, row, end // columns, 0, columns
        start = matrix * size + end


@dataclass
class Tiles:
    """Parts of matrices that are read transposed, for all threads; the last used ones are kept, 64 MiB of them."""

    most_bytes: int = 4 * _BLOCK_BYTES
    _kept: OrderedDict[tuple[object, ...], Elements] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=forking_lock)

    def get(self, key: tuple[object, ...], read: Callable[[], Elements]) -> Elements:
        """Return a tile, reading it if it is not kept."""
        with self._lock:
            found = self._kept.pop(key, None)
            tile = read() if found is None else found
            self._kept[key] = tile
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self.most_bytes:
                self._kept.popitem(last=False)
        return tile


@dataclass(frozen=True)
class _Cell:
    """A piece as a stack of matrices of its tensor: where its box starts, and how to get from one matrix to the next."""

    name: str
    offset: int
    strides: tuple[int, ...]
    columns: int
    extent: tuple[int, int]
    transposed: bool

    @classmethod
    def of(cls, piece: Piece, cell: tuple[int, ...], shape: tuple[int, ...], rank: int) -> _Cell:
        """Describe a piece whose tensor has this shape; all is filled up to `rank` dimensions, at least 2, from the front."""
        shape, start = _filled(shape, rank), (0,) * (rank - len(piece.start)) + piece.start
        strides = tuple(math.prod(shape[at + 1 :]) for at in range(rank))
        offset = sum(first * stride for first, stride in zip(start, strides, strict=True))
        return cls(piece.name, offset, strides[:-2], shape[-1], (cell[-2], cell[-1]), piece.transposed)


@dataclass(frozen=True)
class ArrangedSource:
    """Elements of an arranged tensor; see `deltapack.checkpoint.tensors.Source`. Made by `ArrangedSource.of`."""

    read: ReadInto
    tiles: Tiles
    shape: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...]
    cells: tuple[_Cell, ...]

    @classmethod
    def of(cls, arrangement: Arrangement, shapes: Mapping[str, tuple[int, ...]], read: ReadInto, tiles: Tiles) -> ArrangedSource:
        """Prepare to read a tensor.

        Args:
            arrangement: What it is made of; each piece is a box within its tensor, and all have one type.
            shapes: The shapes of these tensors.
            read: Reads from them.
            tiles: Where transposed parts are kept.
        """
        rank = max(2, len(arrangement.grid), *(len(piece.start) for piece in arrangement.pieces))
        grid = ((1,),) * (rank - len(arrangement.grid)) + arrangement.grid
        cells = tuple(_Cell.of(piece, _filled(cell, rank), shapes[piece.name], rank) for piece, cell in arrangement.cells)
        cuts = tuple(tuple(accumulate(extents, initial=0)) for extents in grid)
        return cls(read, tiles, _filled(arrangement.shape, rank), cuts, cells)

    def read_into(self, start: int, out: Elements) -> None:
        """Fill `out` with the elements from `start` in row-major order."""
        done = 0
        for matrix, top, bottom, left, right in rectangles(start, start + len(out), *self.shape[-2:]):
            count = (bottom - top) * (right - left)
            self._fill(matrix, top, left, out[done : done + count].reshape(bottom - top, right - left))
            done += count

    def _fill(self, matrix: int, top: int, left: int, out: Elements) -> None:
        """Fill `out` from row `top` and column `left` of a matrix."""
        number, inside = 0, list[int]()
        for size in reversed(self.shape[:-2]):
            matrix, index = divmod(matrix, size)
            inside.append(index)
        inside.reverse()
        for at, cuts in enumerate(self.cuts[:-2]):
            band = bisect_right(cuts, inside[at]) - 1
            number, inside[at] = number * (len(cuts) - 1) + band, inside[at] - cuts[band]
        for row, above, below in _bands(self.cuts[-2], top, top + out.shape[0]):
            for column, before, after in _bands(self.cuts[-1], left, left + out.shape[1]):
                place = (number * (len(self.cuts[-2]) - 1) + row) * (len(self.cuts[-1]) - 1) + column
                part = out[above - top : below - top, before - left : after - left]
                self._block(place, inside, above - self.cuts[-2][row], before - self.cuts[-1][column], part)

    def _block(self, place: int, inside: list[int], top: int, left: int, out: Elements) -> None:
        """Fill `out` from row `top` and column `left` of a cell; `inside` says in which of the matrices of its box."""
        cell = self.cells[place]
        offset = cell.offset + sum(index * stride for index, stride in zip(inside, cell.strides, strict=True))
        if not cell.transposed:
            self._rows(cell, offset, top, left, out)
            return
        height, width = cell.extent
        block = _BLOCK_BYTES // out.itemsize
        tall = min(height, max(block // width, _NARROW))
        wide = min(width, max(1, block // tall))
        for row in range(top // tall, -(-(top + out.shape[0]) // tall)):
            for column in range(left // wide, -(-(left + out.shape[1]) // wide)):

                def read(row: int = row, column: int = column) -> Elements:
                    shape = min(wide, width - column * wide), min(tall, height - row * tall)
                    tile = np.empty(shape, out.dtype)
                    self._rows(cell, offset, column * wide, row * tall, tile)
                    return tile

                tile = self.tiles.get((cell.name, offset, cell.extent, row, column), read)
                above, below = max(top, row * tall), min(top + out.shape[0], (row + 1) * tall)
                before, after = max(left, column * wide), min(left + out.shape[1], (column + 1) * wide)
                part = tile[before - column * wide : after - column * wide, above - row * tall : below - row * tall]
                _transpose(part, out[above - top : below - top, before - left : after - left])

    def _rows(self, cell: _Cell, offset: int, top: int, left: int, out: Elements) -> None:
        """Fill `out` from row `top` and column `left` of a box in a matrix that begins at `offset`, as the matrix lies."""
        height, width = out.shape
        first = offset + top * cell.columns + left
        whole = width == cell.columns or height == 1
        if whole and out.flags.c_contiguous:
            self.read(cell.name, first, out.reshape(-1))
            return
        block = _BLOCK_BYTES // out.itemsize
        if cell.columns > min(block, _WASTE * width):
            for row in range(height):
                self.read(cell.name, first + row * cell.columns, out[row])
            return
        step = block // cell.columns
        for row in range(0, height, step):
            count = min(step, height - row)
            # The last row ends with the box, as what follows it may be no row of this matrix.
            flat = np.empty(count * cell.columns, out.dtype)
            self.read(cell.name, first + row * cell.columns, flat[: (count - 1) * cell.columns + width])
            out[row : row + count] = flat.reshape(count, cell.columns)[:, :width]


def _transpose(part: Elements, out: Elements) -> None:
    """Fill `out` with a part of a tile, the other way round, in strips that fit the cache: at once it takes ten times as long."""
    for start in range(0, len(part), _STRIP):
        out[:, start : start + _STRIP] = part[start : start + _STRIP].T


def _filled(dims: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(dims)) + dims


def _bands(cuts: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first and end of the parts of [start, stop) that lie between neighbouring cuts."""
    band = bisect_right(cuts, start) - 1
    while start < stop:
        end = min(stop, cuts[band + 1])
        yield band, start, end
        band, start = band + 1, end
