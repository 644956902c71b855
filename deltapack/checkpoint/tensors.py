"""What a checkpoint file holds: names, types, shapes, and where the elements are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.files import bytes_of
from deltapack.dtypes import DType
from deltapack.errors import CheckpointError, LimitError
from deltapack.format.arrangement import Arrangement
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["ArraySource", "FileSource", "Layout", "ParsedFile", "Source", "TensorInfo", "check_count", "check_tensor"]


class Layout(Protocol):
    """What the writer needs to know of a tensor."""

    @property
    def name(self) -> str:
        """Name in the checkpoint."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its dimensions.
        shard: Name of the file that holds it.
        arranged: What it is made of, where the checkpoint holds other tensors instead of it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: str
    arranged: Arrangement | None = None

    @property
    def numel(self) -> int:
        """Number of elements; of a raw type, of bytes."""
        return self.dtype.count(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class Source(Protocol):
    """Where the elements of a tensor come from."""

    def read_into(self, start: int, out: npt.NDArray[np.generic]) -> None:
        """Fill `out` (1-D, storage type) with the elements from `start` in row-major order."""


@dataclass(frozen=True)
class FileSource:
    """Elements that lie one after another in a file, from `offset`."""

    file: Readable
    offset: int

    def read_into(self, start: int, out: npt.NDArray[np.generic]) -> None:
        """Fill `out` with the elements from `start`."""
        self.file.read_into(self.offset + start * out.itemsize, bytes_of(out))


@dataclass(frozen=True)
class ArraySource:
    """Elements of an array in memory or mapped, with any strides."""

    array: npt.NDArray[np.generic]

    def read_into(self, start: int, out: npt.NDArray[np.generic]) -> None:
        """Fill `out` with the elements from `start`, copying no more than the rows that hold them."""
        array, stop = self.array, start + len(out)
        while array.ndim > 1:
            row = math.prod(array.shape[1:])
            first, last = (start // row, -(-stop // row)) if row and stop > start else (0, 0)
            start, stop = start - first * row, stop - first * row
            array = array[first] if last - first == 1 else array[first:last].reshape(-1)
        out[:] = array.reshape(-1)[start:stop]


@dataclass(frozen=True)
class ParsedFile:
    """One weight file.

    Attributes:
        tensors: Its tensors with their sources, in the order of the file.
        aliases: Second names of tensors, to the name that is kept.
        metadata: Free strings of a safetensors header.
        notes: What the user should be told about reading it.
        handles: Files to close in the end.
        prefix: What the names of tensors begin with for the sub-folder that the file is in; not those in `metadata`.
        files: Names of further files beside it that hold its elements.
    """

    tensors: Sequence[tuple[TensorInfo, Source]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    handles: Sequence[Readable] = ()
    prefix: str = ""
    files: Sequence[str] = ()


def check_count(path: Path, count: int, limits: Limits) -> None:
    """Check the number of tensors.

    Raises:
        LimitError: There are too many.
    """
    if count > limits.tensors:
        raise LimitError("too many tensors", path=path, expected=f"at most {limits.tensors}", found=count)


def check_tensor(path: Path, name: str, shape: Sequence[int], limits: Limits) -> None:
    """Check a tensor's name and shape (dimensions known to be integers >= 0) against what a pack can describe.

    Raises:
        CheckpointError: The name is empty, holds a NUL, or is not Unicode.
        LimitError: Name, rank or number of elements exceed the limits.
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise CheckpointError("a tensor's name is not valid Unicode", path=path, tensor=name) from error
    if not name or "\0" in name:
        raise CheckpointError("a tensor's name is empty or holds a NUL character", path=path, tensor=name)
    for what, value, limit in (
        ("the name is too long", length, limits.name_bytes),
        ("too many dimensions", len(shape), limits.ndim),
        ("too many elements", _capped_prod(shape, limits.numel), limits.numel),
    ):
        if value > limit:
            short = name if len(name) <= 80 else name[:80] + "..."
            raise LimitError(what, path=path, tensor=short, expected=f"at most {limit}", found=value)


def _capped_prod(shape: Sequence[int], cap: int) -> int:
    """Return the number of elements, or a number above `cap`, without building huge integers."""
    if 0 in shape:
        return 0
    product = 1
    for dimension in shape:
        product *= dimension
        if product > cap:
            return cap + 1
    return product
