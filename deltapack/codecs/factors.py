"""Terms of low rank: two factors as codes and scales, their blob, and the values of a chunk (spec/codecs/factors.md)."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.at_hand import AtHand
from deltapack.dtypes import DType
from deltapack.errors import FormatError, LimitError
from deltapack.forks import forking_lock
from deltapack.format.codecs import FACTORS
from deltapack.format.digest import CHUNK
from deltapack.format.frames import pack_stream, unpack_stream
from deltapack.format.index import BlobRef, Entry, Term
from deltapack.format.reader import PackReader
from deltapack.format.table import Layout
from deltapack.kernels.layout import Elements, Positions, Sparse, Values
from deltapack.kernels.product import Product
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["NOTHING_KEPT", "FactorChunks", "FactorShape", "Factors", "every_place", "factor_chunks"]

NOTHING_KEPT = Sparse(np.zeros(0, np.uint32), np.zeros(0, np.float32))
"""A sparse term that keeps nothing."""
_AT_HAND = AtHand(most=64 << 20, least=4)
"""The factors that were read last: chunks of a tensor come one after the other, from each pack of a merge, and packs may have thousands of
tensors."""


@dataclass(frozen=True)
class FactorShape:
    """What the index says of factors.

    Attributes:
        rows: Rows of the matrix.
        columns: Its columns.
        rank: Number of columns of each factor.
        bits: Bits of a code: 2, 4 or 8.
    """

    rows: int
    columns: int
    rank: int
    bits: int

    @classmethod
    def of(cls, term: Term, entry: Entry) -> FactorShape:
        """Return the shape of a term of factors; its entry has at least two dimensions, and elements."""
        columns = entry.shape[-1]
        return cls(entry.common // columns, columns, term.rank, term.bits)

    @property
    def raw_bytes(self) -> int:
        """Bytes of scales and codes."""
        return self.rank * (8 + self.packed(self.rows) + self.packed(self.columns))

    def packed(self, count: int) -> int:
        """Return the bytes of `count` codes."""
        return -(-count * self.bits // 8)


@dataclass(frozen=True, eq=False)
class Factors:
    """Two factors, as a blob holds them.

    Attributes:
        shape: Their shape.
        scales: `[2, rank] f32`, of the columns of the left factor and of the right one.
        left: `[rank, bytes] uint8`, the packed codes of each column of the left factor.
        right: Those of the right one.
    """

    shape: FactorShape
    scales: Values
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]

    @classmethod
    def of_codes(cls, left: NDArray[np.int8], right: NDArray[np.int8], scales: Values, bits: int) -> Factors:
        """Return factors from codes.

        Args:
            left: `[rank, rows]` codes; code c stands for the odd number 2 c + 1.
            right: `[rank, columns]` codes.
            scales: `[2, rank] f32`, finite.
            bits: Bits of a code.
        """
        pack = kernels.active().pack_codes
        packed = [np.stack([pack(column, bits) for column in np.ascontiguousarray(factor)]) for factor in (left, right)]
        return cls(FactorShape(left.shape[1], right.shape[1], len(left), bits), scales.astype(np.float32), *packed)

    @classmethod
    def parse(cls, raw: bytes, shape: FactorShape) -> Factors:
        """Return factors from scales and codes of the length that their shape says.

        Raises:
            FormatError: A scale is not finite, or unused bits are set (rule R9).
        """
        scales = np.frombuffer(raw, "<f4", 2 * shape.rank).reshape(2, shape.rank).astype(np.float32)
        if not np.isfinite(scales).all():
            raise FormatError("a scale of a factor is not finite", rule="R9", found=float(scales[~np.isfinite(scales)][0]))
        split = 8 * shape.rank + shape.rank * shape.packed(shape.rows)
        codes = np.frombuffer(raw, np.uint8)
        left, right = codes[8 * shape.rank : split].reshape(shape.rank, -1), codes[split:].reshape(shape.rank, -1)
        for packed, count in ((left, shape.rows), (right, shape.columns)):
            unused = -count * shape.bits % 8
            if unused and (packed[:, -1] >> (8 - unused)).any():
                raise FormatError("unused bits of the codes of a factor are set", rule="R9")
        return cls(shape, scales, left, right)

    def raw(self) -> bytes:
        """Return scales and codes as a blob holds them, before it is compressed."""
        return self.scales.astype("<f4").tobytes() + self.left.tobytes() + self.right.tobytes()

    def stored(self) -> bytes:
        """Return the bytes of the blob."""
        return pack_stream(self.raw())

    @property
    def nbytes(self) -> int:
        """Bytes that they take in memory."""
        return self.shape.raw_bytes

    @property
    def right_bytes(self) -> int:
        """Bytes that `right_values` take once they were asked for."""
        return 4 * self.shape.rank * self.shape.columns

    @cached_property
    def right_values(self) -> Values:
        """The right factor, `[rank, columns] f32`."""
        return _values(self.right, 0, self.shape.columns, self.shape.bits, self.scales[1])

    @property
    def left_numbers(self) -> Values:
        """The left factor before it is scaled, `[rank, rows] f32`: odd numbers."""
        return _values(self.left, 0, self.shape.rows, self.shape.bits, np.ones(self.shape.rank, np.float32))

    def left_values(self, first: int, last: int, factor: np.float32) -> Values:
        """Return rows [first, last) of the left factor, `[rank, rows] f32`, times the term's factor."""
        with np.errstate(over="ignore", invalid="ignore"):
            return _values(self.left, first, last, self.shape.bits, self.scales[0] * factor)

    def term(self, nnz: int, blob: BlobRef) -> Term:
        """Return the term that the index has for them."""
        return Term("all", FACTORS.name, 1.0, nnz, blob, rank=self.shape.rank, bits=self.shape.bits)

    def product(self, start: int, length: int, factor: np.float32) -> Product:
        """Return what elements [start, start + length) of the tensor are made of.

        Args:
            start: The first element.
            length: How many; at least one.
            factor: The term's factor times the weight.
        """
        first, column = divmod(start, self.shape.columns)
        last = -(-(start + length) // self.shape.columns)
        return Product(self.left_values(first, last, factor), self.right_values, column, length)

    def sparse(self, chunk: int, length: int, factor: np.float32, out: Sparse) -> Sparse:
        """Return positions and values of a chunk of `length` elements; these are made in `out`, those are not to be written to."""
        values = kernels.active().product_values(self.product(chunk * CHUNK, length, factor), out.values)
        return Sparse(every_place(length), values)

    def residual(self, differences: Values, start: int, length: int, positions: Positions | None = None) -> Values:
        """Return what the product leaves of differences, each rounded once.

        Args:
            differences: `[length] f32`, or those at `positions`.
            start: The first element.
            length: How many elements.
            positions: Which of them the differences are of, counted from `start`; all unless given.
        """
        loops, product = kernels.active(), self.product(start, length, np.float32(1))
        taken = loops.product_values(product) if positions is None else loops.product_at(product, positions)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever encodes refuses what is not finite
            left: Values = differences - taken
        return left


def _values(packed: NDArray[np.uint8], first: int, last: int, bits: int, scales: Values) -> Values:
    """Return places [first, last) of each packed column, times its scale."""
    per_byte = 8 // bits
    begin = first // per_byte
    numbers = _odd_numbers(bits)[packed[:, begin : -(-last // per_byte)]].reshape(len(packed), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        values: Values = numbers[:, first - begin * per_byte : last - begin * per_byte] * scales[:, None]
    return values


@lru_cache
def _odd_numbers(bits: int) -> Values:
    """Return what the codes in each byte stand for, `[256, codes] f32`."""
    codes = kernels.reference.unpack_codes(np.arange(256, dtype=np.uint8), bits, 256 * 8 // bits)
    return (2 * codes.astype(np.float32) + 1).reshape(256, 8 // bits)


def every_place(length: int) -> Positions:
    """Return the positions of all elements of a chunk, which are not to be written to."""
    return _places()[:length]


@lru_cache(maxsize=1)
def _places() -> Positions:
    return np.arange(CHUNK, dtype=np.uint32)


@dataclass(frozen=True)
class FactorChunks:
    """A term of factors as one that keeps all elements, chunk by chunk.

    Attributes:
        reader: The pack.
        term: The term.
        shape: The shape of its factors.
        layout: Which elements each chunk covers.
        tensor: Name of the tensor.
        loaded: The factors, if they are to stay in memory.
    """

    reader: PackReader
    term: Term
    shape: FactorShape
    layout: Layout
    tensor: str
    loaded: Factors | None = None
    _seen: list[weakref.ref[Factors]] = field(default_factory=list, compare=False, repr=False)
    _reading: threading.Lock = field(default_factory=forking_lock, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of factors that are loaded."""
        return 0 if self.loaded is None else self.loaded.nbytes

    def factors(self) -> Factors:
        """Return the factors; they are read once more where too many others were read since.

        Raises:
            FormatError: The blob is damaged (rules R8 to R10).
            LimitError: It is larger than anybody's factors are.
        """
        held = self._held()
        if held is None:
            with self._reading:  # threads that begin a tensor together read its factors once
                held = self._held()
                if held is None:
                    held = self._read()
                    _AT_HAND.keep(held, held.nbytes + held.right_bytes)
                    self._seen[:] = [weakref.ref(held)]
        return held

    def _held(self) -> Factors | None:
        """Return the factors if they are in memory."""
        return self.loaded if self.loaded is not None else next((found for ref in self._seen[-1:] if (found := ref()) is not None), None)

    def load(self) -> FactorChunks:
        """Return the same with its factors in memory."""
        return FactorChunks(self.reader, self.term, self.shape, self.layout, self.tensor, self._read())

    def sparse(self, chunk: int, factor: np.float32, out: Sparse) -> Sparse:
        """Return positions and values of a chunk as `deltapack.codecs.chunk.decode_term_chunk` does; positions are not to be written to."""
        return self.factors().sparse(chunk, self.layout.chunk_length(chunk), factor, out)

    def add_to(self, chunk: int, factor: np.float32, elements: Elements, dtype: DType, kept: Sparse = NOTHING_KEPT) -> None:
        """Add a chunk, and then what a sparse term keeps of it, to elements in place, rounded once."""
        product = self.factors().product(chunk * CHUNK, len(elements), factor)
        kernels.active().add_product(elements, dtype, product, kept)

    def _read(self) -> Factors:
        try:
            return Factors.parse(self._raw(), self.shape)
        except (FormatError, LimitError) as error:
            error.path, error.tensor = self.reader.path, self.tensor
            raise

    def _raw(self) -> bytes:
        size, most = self.shape.raw_bytes, DEFAULT_LIMITS.factor_bytes
        if size > most:
            raise LimitError("factors are too large", rule="R8", expected=f"at most {most} bytes", found=size)
        blob = self.term.blob
        if blob.length > size:
            raise FormatError("factors are stored larger than they are", rule="R8", expected=f"at most {size} bytes", found=blob.length)
        return unpack_stream(self.reader.plain_blob(blob), size)


def factor_chunks(reader: PackReader, entry: Entry, term: Term) -> FactorChunks:
    """Return the chunks of a term of factors."""
    return FactorChunks(reader, term, FactorShape.of(term, entry), Layout(entry.common, 0, has_counts=False), entry.name)
