"""Where the elements of a pack's tensor live in a model: the whole of a tensor, or rows and columns of it in a part of another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from deltapack.device.torch_kernels import BITS
from deltapack.dtypes import BY_TORCH, DType
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK, TILE
from deltapack.kernels.layout import Elements
from deltapack.kernels.rounding import NOT_FINITE

__all__ = ["Region", "Typed", "dtype_of", "not_finite", "read_chunk", "region_of", "write_chunk"]


@dataclass(frozen=True)
class Region:
    """Rows and columns of a pack's tensor, seen as a matrix, and the memory that holds them.

    Attributes:
        memory: `[rows, columns]`, any strides, integers of the element's width; a view of the live tensor.
        width: Columns of the pack's tensor.
        top: Row of the pack's tensor that `memory[0]` is.
        left: Column of the pack's tensor that `memory[:, 0]` is.
    """

    memory: torch.Tensor
    width: int
    top: int = 0
    left: int = 0

    @cached_property
    def key(self) -> tuple[int, torch.device]:
        """What tells regions apart; they do not overlap."""
        return self.memory.data_ptr(), self.memory.device

    @cached_property
    def sliced(self) -> bool:
        """Whether it is more than one range of consecutive elements, in the pack's tensor and in memory."""
        rows, columns = self.memory.shape
        whole_rows = columns == self.width and self.memory.stride(0) == columns
        return (rows > 1 and not whole_rows) or (columns > 1 and self.memory.stride(1) != 1)

    @property
    def start(self) -> int:
        """The first element of the pack's tensor that may lie in it."""
        return self.top * self.width + self.left

    @property
    def stop(self) -> int:
        """The end of those."""
        rows, columns = self.memory.shape
        return (self.top + rows - 1) * self.width + self.left + columns if rows and columns else self.start

    @property
    def tiles(self) -> range:
        """Tiles of the pack's tensor that it has elements of."""
        return range(self.start // TILE, -(-self.stop // TILE)) if self.stop > self.start else range(0)

    @property
    def chunks(self) -> range:
        """Chunks of the pack's tensor that it has elements of."""
        return range(self.start // CHUNK, -(-self.stop // CHUNK)) if self.stop > self.start else range(0)

    def find(self, elements: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the places `[m]` of elements `[n] int64` of the pack's tensor, and which of them lie in it (all: `None`).

        Places count the elements of `memory` in row-major order.
        """
        rows, columns = self.memory.shape
        if not self.sliced:
            places = elements - self.start
            inside = (places >= 0) & (places < rows * columns)
        else:
            row = torch.div(elements, self.width, rounding_mode="floor")
            column = elements - row * self.width - self.left
            row = row - self.top
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            places = row * columns + column
        return (places, None) if bool(inside.all()) else (places[inside], inside)

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """Return the elements at places `[m]`."""
        return self.memory[self._indices(places)]

    def put(self, places: torch.Tensor, elements: torch.Tensor) -> None:
        """Overwrite the elements at places `[m]`."""
        self.memory[self._indices(places)] = elements

    def _indices(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = max(1, self.memory.shape[1])
        row = torch.div(places, columns, rounding_mode="floor")
        return row, places - row * columns


def dtype_of(tensor: torch.Tensor) -> DType | None:
    """Return the element type of a torch tensor, `None` where deltapack has no name for it."""
    return BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))


def region_of(
    tensor: torch.Tensor,
    shape: Sequence[int],
    of: Sequence[slice] = (),
    into: Sequence[slice] = (),
    *,
    name: str = "",
) -> Region:
    """Describe where a tensor of a pack, or a slice of it, lives in a live tensor.

    Args:
        tensor: The live tensor.
        shape: Shape of the pack's tensor.
        of: Which rows and columns of the pack's tensor are held; all unless given.
        into: Which rows and columns of the live tensor hold them; all unless given.
        name: The pack's tensor, for messages.

    Raises:
        RecipeError: The two have different shapes, or the slices ask for what a region cannot be.
    """
    with torch.no_grad():
        held = tensor.detach()[tuple(into)] if into else tensor.detach()
    bounds = [_bounds(piece, size, name) for piece, size in zip(of, shape, strict=False)]
    bounds += [(0, size) for size in shape[len(bounds) :]]
    wanted = tuple(stop - start for start, stop in bounds)
    if tuple(held.shape) != wanted or len(of) > len(shape):
        hint = "Say with `names=` which slice of which tensor of the model holds it."
        raise RecipeError("the model holds it in another shape", tensor=name, expected=list(wanted), found=list(held.shape), hint=hint)
    if any(bound != (0, size) for bound, size in zip(bounds[2:], shape[2:], strict=True)):
        raise RecipeError("slices are of rows and columns only", tensor=name, found=list(of))
    bits = held.view(BITS[held.element_size()])
    rows, columns, memory = _as_matrix(bits, shape)
    if memory is None:
        raise RecipeError("the strides of the live tensor cannot be seen as those of a matrix", tensor=name, found=list(held.stride()))
    width = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    inner = math.prod(shape[2:])
    top, left = (bounds[0][0], bounds[1][0] * inner) if len(shape) > 1 else (0, bounds[0][0] if shape else 0)
    region = Region(memory, max(1, width), top, left)
    return region if region.sliced else Region(memory.reshape(1, rows * columns), max(1, math.prod(shape)), 0, region.start)


def _bounds(piece: slice, size: int, name: str) -> tuple[int, int]:
    start, stop, step = piece.indices(size)
    if step != 1:
        raise RecipeError("a slice has a step", tensor=name, found=piece)
    return start, max(start, stop)


def _as_matrix(bits: torch.Tensor, shape: Sequence[int]) -> tuple[int, int, torch.Tensor | None]:
    """View a tensor as a matrix of its first dimension and the rest, without a copy."""
    if bits.dim() < 2:
        columns = bits.numel()
        return 1, columns, bits.reshape(1, columns) if bits.dim() == 0 else bits.unsqueeze(0)
    rows, columns = bits.shape[0], math.prod(bits.shape[1:])
    try:
        return rows, columns, bits.view(rows, columns)
    except RuntimeError:
        return rows, columns, None


class Typed(Protocol):
    """A tensor's type and number of elements."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def numel(self) -> int:
        """Number of elements."""


def read_chunk(region: Region, info: Typed, chunk: int, around: Elements | None = None) -> Elements:
    """Return the elements of a chunk of a tensor in their storage type; those that are not held are 0, or as in `around`."""
    start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, info.numel)
    out = np.zeros(stop - start, info.dtype.storage) if around is None else around.copy()
    for place, held in _pieces(region, start, stop):
        out[place] = held.cpu().numpy().view(info.dtype.storage).reshape(-1)
    return out


def write_chunk(region: Region, chunk: int, elements: Elements) -> None:
    """Overwrite what is held of a chunk of a tensor; `elements` are all of the chunk, in their storage type."""
    bits = elements.view(f"<{'u' if elements.dtype.itemsize == 1 else 'i'}{elements.dtype.itemsize}")
    for place, held in _pieces(region, chunk * CHUNK, chunk * CHUNK + len(elements)):
        if held.device.type == "cpu":
            # Threads call this, and each copy of torch's would wake threads of its own.
            held.numpy()[...] = bits[place]
            if not held.is_inference():
                torch.autograd.graph.increment_version(held)
        else:
            held.copy_(torch.from_numpy(np.require(bits[place], requirements=["C", "W"])))


def _pieces(region: Region, start: int, stop: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield places among the elements [start, stop) of a tensor and the views of memory that hold them."""
    if not region.sliced:
        first, last = max(start, region.start), min(stop, region.stop)
        if last > first:
            yield slice(first - start, last - start), region.memory[0, first - region.start : last - region.start]
        return
    rows, columns = region.memory.shape
    low, high = max(0, start // region.width - region.top), min(rows, -(-stop // region.width) - region.top)
    for row in range(low, high):
        begin = (region.top + row) * region.width + region.left
        first, last = max(start, begin), min(stop, begin + columns)
        if last > first:
            yield slice(first - start, last - start), region.memory[row, first - begin : last - begin]


def not_finite(region: Region, dtype: DType) -> int:
    """Return how many elements of a region, of a float type, are NaN or infinite; computed where they are."""
    memory = region.memory
    bits = memory & (0x7F if memory.dtype == torch.uint8 else torch.iinfo(memory.dtype).max)
    return int((bits >= NOT_FINITE[dtype.name]).sum())
