"""Elements of tensors written to their places in files that are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from deltapack.checkpoint.files import WriteFile, bytes_of
from deltapack.checkpoint.layout import NewTensor
from deltapack.errors import OutputError
from deltapack.format.atomic import writing
from deltapack.sources.local import LocalFile

__all__ = ["PlacedWriter", "Places"]

Places = dict[str, tuple[NewTensor, WriteFile, int]]
"""By the names of tensors: what they are, the file they are in, and the offset of their first element there."""


class PlacedWriter:
    """Writes elements in any order from any thread.

    Attributes:
        out: The output, as errors name it.
    """

    def __init__(self, out: Path, places: Places) -> None:
        self.out = out
        self._places = places

    def write(self, name: str, start: int, array: npt.NDArray[np.generic]) -> None:
        """Write elements of a tensor; safe from any number of threads.

        Args:
            name: The tensor.
            start: Its first element to write, in row-major order.
            array: The elements, of the `storage` type of the tensor's dtype or another of its size; any shape.

        Raises:
            OutputError: The range is not part of the tensor or was written before, or the system refuses to write.
        """
        flat = np.ascontiguousarray(array).reshape(-1)
        file, offset = self._place(name, start, flat.size, str(flat.dtype), flat.dtype.itemsize)
        if not flat.size:
            return
        self._cover(name, start, start + flat.size)
        with writing(self.out):
            file.write(offset, bytes_of(flat))

    def copy(self, name: str, start: int, count: int, source: LocalFile, at: int) -> None:
        """Fill elements of a tensor with bytes of another file, inside the system where it can; safe from any number of threads.

        Args:
            name: The tensor.
            start: Its first element to fill.
            count: Number of elements.
            source: The other file.
            at: Offset of the bytes there.

        Raises:
            CheckpointError: The other file ends before, or cannot be read.
            OutputError: The range is not part of the tensor or was written before, or the system refuses to write.
        """
        itemsize = self._places[name][0].dtype.itemsize if name in self._places else 0
        file, offset = self._place(name, start, count, "bytes", itemsize)
        self._cover(name, start, start + count)
        if not file.copy(source, at, offset, count * itemsize):
            data = source.read(at, count * itemsize)
            with writing(self.out):
                file.write(offset, memoryview(data))

    def _place(self, name: str, start: int, count: int, kind: str, itemsize: int) -> tuple[WriteFile, int]:
        """Return where elements of a tensor lie."""
        if name not in self._places:
            raise OutputError("not a tensor of this output, or it is closed", path=self.out, tensor=name)
        tensor, file, offset = self._places[name]
        if itemsize != tensor.dtype.itemsize or not 0 <= start <= start + count <= tensor.numel:
            found, expected = f"[{start}, {start + count}) {kind}", f"within {tensor.numel} of {tensor.dtype}"
            raise OutputError("no such range", path=self.out, tensor=name, expected=expected, found=found)
        return file, offset + start * itemsize

    def _cover(self, name: str, start: int, stop: int) -> None:
        """Note that elements are written; whoever opened the files does."""
