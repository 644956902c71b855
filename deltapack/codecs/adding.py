"""All terms of one chunk added to its elements: as they come, or several in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deltapack import kernels
from deltapack.codecs.chunk import TermChunks, add_term_chunk, decode_term_chunk
from deltapack.codecs.factors import FactorChunks
from deltapack.dtypes import DType
from deltapack.format.index import Term
from deltapack.kernels.layout import Elements, Sparse

__all__ = ["OneTerm", "add_terms"]


class OneTerm(NamedTuple):
    """A term to add: its chunks, the term, and what its codes are multiplied with besides their scale."""

    blob: TermChunks | FactorChunks
    term: Term
    factor: np.float32


def add_terms(terms: Sequence[OneTerm], chunk: int, elements: Elements, dtype: DType, scratch: Iterator[Sparse]) -> None:
    """Decode a chunk of terms and add their sum to elements in place, rounded once.

    Args:
        terms: The terms, in order; at least one.
        chunk: Number of the chunk.
        elements: `[n]` elements of the chunk, in the storage type of `dtype`.
        dtype: Their type.
        scratch: Where terms are decoded.

    Raises:
        FormatError: A rule from R8 to R10 is broken; nothing was changed.
    """
    first, *rest = terms
    if not rest:
        add_term_chunk(*first[:2], chunk, first.factor, elements, dtype, next(scratch))
    elif len(rest) == 1 and isinstance(first.blob, FactorChunks):
        # What a pack says of most matrices: what is added everywhere needs no positions, and the sums stay in the first-level cache.
        kept = decode_term_chunk(*rest[0][:2], chunk, rest[0].factor, next(scratch))
        first.blob.add_to(chunk, first.factor, elements, dtype, kept)
    else:
        parts = [decode_term_chunk(blob, term, chunk, factor, next(scratch)) for blob, term, factor in terms]
        kernels.active().add_in_place(elements, dtype, parts)
