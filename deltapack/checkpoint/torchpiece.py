"""One tensor as `torch.save` writes it, somewhere in a file: read in place, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltapack.checkpoint.pickle_values import Made, Reference, Symbol, plain_size
from deltapack.checkpoint.pickled import read_pickle
from deltapack.checkpoint.tensors import Source
from deltapack.checkpoint.torchzip import read_records, source_in_record
from deltapack.dtypes import BY_TORCH, DType
from deltapack.errors import CheckpointError, UnsupportedError
from deltapack.limits import Limits
from deltapack.sources.reading import Readable

__all__ = ["Piece", "View", "piece_source"]

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Classes of storages of torch, to the type of their elements."""
_REBUILD = {Symbol("torch._utils", "_rebuild_tensor_v2"): 6, Symbol("torch._utils", "_rebuild_tensor_v3"): 7}
"""What makes a tensor from a storage, and how many arguments it has at least; one more says that elements are conjugate or negative."""
_PARAMETER = Symbol("torch._utils", "_rebuild_parameter")
_MOST_HEADER = 1 << 20
"""Bytes of a directory or a pickle that describe one tensor; a few hundred do."""
_MOST_SEEN = 4096
"""Pickles that are kept, and bytes of each."""
_AGAIN = "Was the save interrupted, or are files missing?"


@dataclass(frozen=True)
class Piece:
    """What lies in a part of a file.

    Attributes:
        name: The tensor.
        dtype: Its element type.
        shape: The dimensions of the piece, as torch counts elements.
        offset: Where the archive begins in the file.
        length: Its bytes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class View:
    """A tensor as a view into a record of its archive."""

    key: str
    dtype: DType | None
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def piece_source(file: Readable, piece: Piece, limits: Limits, seen: dict[bytes, View]) -> Source:
    """Return the elements of a piece.

    Args:
        file: The file that it lies in.
        piece: Where it lies, and what it is to be.
        limits: Bounds on the archive.
        seen: What pickles of other pieces say; most pieces have the pickle of another one.

    Raises:
        CheckpointError: The file ends before it, the archive is damaged, or it holds another tensor.
        LimitError: The archive exceeds `limits`.
        UnsupportedError: The tensor is compressed, big-endian, or no plain dense one.
    """
    end = piece.offset + piece.length
    if end > file.size:
        expected = f"{end} bytes at least"
        raise CheckpointError(
            "the file ends before a piece does", path=file.path, tensor=piece.name, expected=expected, found=file.size, hint=_AGAIN
        )
    records = read_records(file, replace(limits, header_bytes=min(_MOST_HEADER, limits.header_bytes)), piece.offset, piece.length)
    if records is None:
        raise UnsupportedError("a piece is compressed or big-endian", path=file.path, tensor=piece.name)
    view = seen.get(records.data_pkl)
    if view is None:
        view = _view_of(read_pickle(records.data_pkl, file.path), file, piece.name)
        if len(seen) < _MOST_SEEN and len(records.data_pkl) <= _MOST_SEEN:
            seen[records.data_pkl] = view
    if view.shape != piece.shape or view.dtype is not piece.dtype:
        expected, found = f"{piece.dtype} {list(piece.shape)}", f"{view.dtype} {list(view.shape)}"
        raise CheckpointError("another piece than the metadata say", path=file.path, tensor=piece.name, expected=expected, found=found)
    if view.key not in records.spans:
        raise CheckpointError("the elements of a piece are not in its archive", path=file.path, tensor=piece.name)
    return source_in_record(file, piece.name, piece.dtype, records.spans[view.key], view.first, view.shape, view.strides)


def _view_of(document: object, file: Readable, name: str) -> View:
    """Return the tensor that the pickle of an archive describes.

    Raises:
        UnsupportedError: It is something else than a plain dense tensor.
    """
    made = document
    if isinstance(made, Made) and made.what == _PARAMETER and isinstance(made.args, tuple) and made.args:
        made = made.args[0]
    if isinstance(made, Made) and isinstance(made.what, Symbol) and isinstance(made.args, tuple):
        view = _rebuilt(made.what, made.args)
        if view is not None:
            return view
    found = str(made.what)[:200] if isinstance(made, Made) and isinstance(made.what, Symbol) else type(made).__name__
    raise UnsupportedError("only plain dense tensors are read", path=file.path, tensor=name, found=found)


def _rebuilt(what: Symbol, args: tuple[object, ...]) -> View | None:
    """Return the view that torch would make of a storage; none where the arguments are not such."""
    count = _REBUILD.get(what, len(args) + 1)
    if len(args) < count or any(bits is not None for bits in args[count:]):
        return None
    storage, first, shape, strides = args[0], args[1], plain_size(args[2]), plain_size(args[3])
    pid = storage.key if isinstance(storage, Reference) else None
    if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[2], str) or type(first) is not int or first < 0:
        return None
    if shape is None or strides is None or len(shape) != len(strides):
        return None
    kind = args[6] if what.name.endswith("v3") else pid[1]
    spelled = kind.name if isinstance(kind, Symbol) else ""
    return View(pid[2], BY_TORCH.get(_STORAGES.get(spelled, spelled)), first, shape, strides)
