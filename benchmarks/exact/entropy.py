"""The least that an order-0 code of differences takes, in bytes, tables for nothing: what exact packs are held against.

The symbols are those of the codec, sign and leading bits of the difference of ordinals, with all raw bits behind them
(`spec/codecs/exact.md`, section 3). Each value of the base's context byte, an exponent, is a context of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.exact.inputs import Case, Tensor, chunks_of
from deltapack import kernels
from deltapack.codecs.exact import encode_exact_chunk
from deltapack.codecs.exact_bytes import Cursor
from deltapack.codecs.exact_table import MOST_TABLE_BYTES, read_table
from deltapack.dtypes import DType
from deltapack.kernels.exact_numbers import numbers_of, symbol_table
from deltapack.kernels.layout import EXACT_BLOCK

__all__ = ["chunk_entropy", "model_entropy"]

_DENSE = 2


def model_entropy(case: Case) -> float:
    """Return the entropy with counts of the whole model: H(symbol | exponent of the base), of plain differences.

    Nothing of a file is needed for it, so that it is the same whatever the codec does. Tensors without a partner count with what the
    codec makes of them.
    """
    loops, numbers = kernels.active(), numbers_of(case.dtype)
    widths = symbol_table(numbers, -1).widths
    counts, raw, alone = np.zeros((256, 256), np.int64), 0, 0
    for chunk in chunks_of(case.tensors):
        if chunk.base is None:
            alone += len(encode_exact_chunk(None, chunk.tuned, case.dtype))
            continue
        base, tuned = chunk.base.view(numbers.storage), chunk.tuned.view(numbers.storage)
        symbols = loops.symbols_of(base, tuned, numbers, -1)
        first, (own,) = loops.count_symbols(base, np.zeros(-(-len(base) // EXACT_BLOCK), np.uint8), symbols, numbers, 1)
        counts[first : first + len(own), : own.shape[1]] += own
        raw += int(widths[symbols].sum(dtype=np.int64))
    return (_bits(counts) + raw) / 8 + alone


def chunk_entropy(chunk: Tensor, data: bytes, dtype: DType) -> float:
    """Return the entropy of a chunk by itself, with what its table predicts, its classes and its far symbols where it is dense.

    Of chunks in other forms, of plain differences, or their size where that is less.
    """
    if chunk.base is None:
        return len(data)
    loops, numbers = kernels.active(), numbers_of(dtype)
    base, tuned = chunk.base.view(numbers.storage), chunk.tuned.view(numbers.storage)
    blocks = -(-len(base) // EXACT_BLOCK)
    classes, predicted, far, kinds = np.zeros(blocks, np.uint8), base, -1, 1
    if data[0] == _DENSE:
        cursor = Cursor(data[1:])
        table = read_table(cursor.stream(1, MOST_TABLE_BYTES, "the table"), numbers)
        far, kinds = table.far, table.kinds
        if kinds == 2:
            classes = np.frombuffer(cursor.stream(blocks, blocks, "the classes"), np.uint8).copy()
        predicted = base if table.steps is None else loops.predicted_of(base, classes, table.steps, numbers)
    symbols = loops.symbols_of(predicted, tuned, numbers, far)
    counts = loops.count_symbols(base, classes, symbols, numbers, kinds)[1]
    size = (_bits(counts.reshape(-1, counts.shape[-1])) + int(symbol_table(numbers, far).widths[symbols].sum(dtype=np.int64))) / 8
    return size if data[0] == _DENSE else min(size, len(data))


def _bits(counts: NDArray[np.int64]) -> float:
    """Return the sum over contexts (rows) of n log2 n, less that over their symbols."""
    exact = counts.astype(np.float64)
    sums = exact.sum(axis=1)
    return float((sums * np.log2(np.maximum(sums, 1))).sum() - (exact * np.log2(np.maximum(exact, 1))).sum())
