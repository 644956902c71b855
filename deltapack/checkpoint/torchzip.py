"""The zip archives that `torch.save` writes: where the records with elements lie, in a file or in a part of one.

A record is stored as it is, so its elements are read by range; only `data.pkl`, which says what the records are, is read whole.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltapack.checkpoint.strided import StridedSource
from deltapack.checkpoint.tensors import FileSource, Source
from deltapack.dtypes import DType
from deltapack.errors import CheckpointError, LimitError, NotACheckpointError
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["NOT_PLAIN", "Records", "check_unfolded", "read_data_pkl", "read_records", "source_in_record"]

NOT_PLAIN = "Only plain state dicts of tensors are read; save one with torch.save(model.state_dict(), path)."
"""The way out for a file that holds anything else."""
_LOCAL_HEADER, _WINDOW, _WORD = 30, 4096, 16
_TIMES, _SLACK = 64, 1 << 20
"""How many times its own size a file may unfold to, and how many bytes besides. Weights that are compressed shrink by half."""

_BAD_ARCHIVE = (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, struct.error, zlib.error)


@dataclass(frozen=True)
class Records:
    """What an archive holds.

    Attributes:
        data_pkl: The pickle that says which tensors it holds.
        spans: Offset in the file and size of every record with elements, by its key.
    """

    data_pkl: bytes
    spans: Mapping[str, tuple[int, int]]


class _Section(io.RawIOBase):
    """A part of a file as a file; a read that no honest archive needs is refused before memory is taken for it.

    What lies around a short read is kept: all that is read of an archive lies at its two ends.
    """

    def __init__(self, file: Readable, start: int, length: int, limits: Limits) -> None:
        self._file, self._start, self._length, self._limits, self._at = file, start, length, limits, 0
        self._kept, self._kept_at = b"", 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if at < 0:
            raise ValueError("a place before the begin")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._at)
        count = left if size is None or size < 0 else min(size, left)
        if count > self._limits.header_bytes:
            raise LimitError("the archive's directory or data.pkl is too long", path=self._file.path, found=count)
        if count > _WINDOW:
            data = self._file.read(self._start + self._at, count)
        else:
            if not self._kept_at <= self._at <= self._at + count <= self._kept_at + len(self._kept):
                self._kept_at = max(0, min(self._at, self._length - _WINDOW))
                self._kept = self._file.read(self._start + self._kept_at, min(_WINDOW, self._length - self._kept_at))
            data = self._kept[self._at - self._kept_at :][:count]
        self._at += count
        return data


def read_records(file: Readable, limits: Limits, start: int = 0, length: int | None = None) -> Records | None:
    """Return what the archive in bytes `[start, start + length)` of a file holds; none where it cannot be read in place.

    Args:
        file: The file.
        limits: Bounds on `data.pkl` and the archive's directory.
        start: Where the archive begins.
        length: Its bytes; the rest of the file unless given. Both lie inside of the file.

    Raises:
        CheckpointError: The archive is damaged.
        NotACheckpointError: It is whole, but no state dict.
        LimitError: It exceeds `limits`.
    """
    length = file.size - start if length is None else length
    spans: dict[str, tuple[int, int]] = {}
    try:
        with zipfile.ZipFile(_Section(file, start, length, limits)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise CheckpointError("two records of the archive have one name", path=file.path)
            pickle = _pickle_of(file, entries, limits)
            root = pickle.filename[: -len("data.pkl")]
            if f"{root}constants.pkl" in names:
                raise NotACheckpointError("this is a TorchScript archive, not a state dict", path=file.path, hint=NOT_PLAIN)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                check_unfolded(file, sum(entry.file_size for entry in entries), length)
            if f"{root}byteorder" in names and _start_of(archive, f"{root}byteorder") != b"little":
                return None
            for entry in entries:
                if entry.filename.startswith(f"{root}data/"):
                    if entry.compress_type != zipfile.ZIP_STORED:
                        return None
                    spans[entry.filename.removeprefix(f"{root}data/")] = _data_span(file, entry, start, start + length)
            return Records(archive.read(pickle), spans)
    except _BAD_ARCHIVE as error:
        raise CheckpointError("not a readable zip archive", path=file.path, hint="It is cut or damaged.") from error


def read_data_pkl(file: Readable, limits: Limits) -> bytes:
    """Return the pickle of an archive that cannot be read in place. Raises as `read_records`."""
    try:
        with zipfile.ZipFile(_Section(file, 0, file.size, limits)) as archive:
            return archive.read(_pickle_of(file, archive.infolist(), limits))
    except _BAD_ARCHIVE as error:
        raise CheckpointError("not a readable zip archive", path=file.path, hint="It is cut or damaged.") from error


def _pickle_of(file: Readable, entries: Sequence[zipfile.ZipInfo], limits: Limits) -> zipfile.ZipInfo:
    """Return the one record that says which tensors an archive holds."""
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise CheckpointError("a record is compressed in a way that torch does not know", path=file.path)
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].filename.count("/") > 1:
        raise NotACheckpointError("a zip archive, but no PyTorch state dict: no single data.pkl", path=file.path, hint=NOT_PLAIN)
    if pickles[0].file_size > limits.header_bytes:
        raise LimitError("data.pkl is too long", path=file.path, found=pickles[0].file_size)
    return pickles[0]


def check_unfolded(file: Readable, found: int, size: int, name: str | None = None) -> None:
    """Require that what a file says in few bytes is no more than a multiple of them, such as views that repeat elements.

    Args:
        file: The file.
        found: The bytes that it unfolds to.
        size: The bytes that say so.
        name: The tensor, if it is one.

    Raises:
        LimitError: They are too many.
    """
    if found > _TIMES * size + _SLACK:
        hint = "It may be hostile; else save it again, uncompressed, with contiguous tensors."
        expected = f"at most {_TIMES} times its {size:,} bytes"
        raise LimitError(
            "the file unfolds to too many bytes", path=file.path, tensor=name, expected=expected, found=f"{found:,}", hint=hint
        )


def _start_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the first bytes of a record that holds a word: a compressed one may hold any number of them."""
    with archive.open(name) as record:
        return record.read(_WORD)


def _data_span(file: Readable, entry: zipfile.ZipInfo, start: int, stop: int) -> tuple[int, int]:
    """Return where the bytes of a stored record are: after its local header, whose padding aligns them."""
    at = start + entry.header_offset
    header = file.read(at, _LOCAL_HEADER) if 0 <= entry.header_offset <= stop - start - _LOCAL_HEADER else bytes(_LOCAL_HEADER)
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    begin = at + _LOCAL_HEADER + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or begin + entry.file_size > stop:
        raise CheckpointError(f"the archive record {entry.filename!r} is damaged", path=file.path)
    return begin, entry.file_size


def source_in_record(
    file: Readable, name: str, dtype: DType, span: tuple[int, int], first: int, shape: Sequence[int], strides: Sequence[int]
) -> Source:
    """Return the elements of a strided view into a record.

    Args:
        file: The file.
        name: The tensor, for errors.
        dtype: Its element type.
        span: Offset and size of the record, in bytes.
        first: The view's first element in the record.
        shape: Its dimensions, as torch counts elements.
        strides: Elements from one index to the next in each dimension.

    Raises:
        CheckpointError: The view reaches out of the record, or is of a shape that cannot be.
        LimitError: It repeats elements too often.
    """
    begin, size = span
    if min((*shape, *strides), default=0) < 0:
        said = f"shape {tuple(shape)}, strides {tuple(strides)}"
        raise CheckpointError("a dimension or stride is negative", path=file.path, tensor=name, found=said)
    strides = [stride if dimension > 1 else 0 for dimension, stride in zip(shape, strides, strict=True)]  # others reach nothing
    itemsize, numel = dtype.itemsize, int(np.prod(shape, dtype=object))
    reach = sum((dimension - 1) * stride for dimension, stride in zip(shape, strides, strict=True))
    if numel and (first < 0 or (first + reach + 1) * itemsize > size):
        expected, found = f"at most {size} bytes", (first + reach + 1) * itemsize
        raise CheckpointError("the tensor reaches beyond its record", path=file.path, tensor=name, expected=expected, found=found)
    if not numel or _is_contiguous(shape, strides):
        return FileSource(file, begin + first * itemsize)
    check_unfolded(file, numel * itemsize, size, name)
    return StridedSource(file, begin + first * itemsize, tuple(shape), tuple(strides))


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie in row-major order; the stride of a dimension of one element does not matter."""
    expected = 1
    for dimension, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dimension != 1 and stride != expected:
            return False
        expected *= dimension
    return True
