"""One chunk of a tensor of a result: base plus terms, and rows of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deltapack import kernels
from deltapack.codecs.adding import OneTerm, add_terms
from deltapack.composing.tensor_job import FromBase, PackTerm, StoredTerm, TensorJob, TermSource
from deltapack.dtypes import DType
from deltapack.format.digest import CHUNK, chunk_digest
from deltapack.kernels import rounding
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements

__all__ = ["BaseElements", "RestoredChunk", "count_overflowed", "make_chunk", "restore_chunk"]


class BaseElements(Protocol):
    """Where elements of the base come from: a checkpoint, or what a live model holds."""

    def read_into(self, name: str, start: int, out: Elements) -> None:
        """Fill `out` with the elements of a tensor from `start`."""


class RestoredChunk(NamedTuple):
    """Elements of the result, none where it ends before the base; and, if wanted, the digest of the base's chunk where there is one.

    `overflowed` are those that became NaN or infinite though all that they are made of is finite, where no digest says that they are so.
    """

    elements: Elements
    base_digest: bytes | None
    overflowed: int = 0


def restore_chunk(base: BaseElements, job: TensorJob, chunk: int, buffers: Buffers, *, base_digest: bool = False) -> RestoredChunk:
    """Return the elements of a chunk of the result and, if wanted, the chunk digest of the base.

    The elements are valid until the thread restores its next chunk with the same `buffers`.
    """
    start, digest, elements = chunk * CHUNK, None, np.zeros(0, job.dtype.storage)
    if isinstance(job.source, FromBase) and start < job.source.base.numel:
        held = job.source.base
        elements = buffers.take("base", held.dtype.storage, min(start + CHUNK, held.numel) - start)
        base.read_into(held.name, start, elements)
        # Now, as terms are added in place.
        digest = chunk_digest(elements) if base_digest else None
    made = make_chunk(job, chunk, elements, buffers)
    return RestoredChunk(made, digest, count_overflowed(base, job, chunk, made))


def count_overflowed(base: BaseElements, job: TensorJob, chunk: int, made: Elements) -> int:
    """Return how many elements of a restored chunk are not finite though all is that they are made of: base, stored elements, terms.

    A result with a digest is what its pack promises; a weight, another rescale or another type may be too much for it.

    Args:
        base: Where the elements of the base are read again, if there is something to look for.
        job: The tensor.
        chunk: Number of the chunk.
        made: Its elements, in the storage type of the job.
    """
    if job.digest or job.is_base or not job.dtype.is_delta or rounding.all_finite(made, job.dtype):
        return 0
    start, lost = chunk * CHUNK, ~rounding.is_finite(made, job.dtype)
    source, rows = job.source, job.source.rows
    if rows is not None and start + len(made) > max(start, rows.start):
        first = max(start, rows.start)
        lost[first - start :] &= _finite(rows.read(first, start + len(made)), rows.dtype)
    if isinstance(source, FromBase) and start < job.common:
        held = np.empty(min(start + CHUNK, source.base.numel) - start, source.base.dtype.storage)
        base.read_into(source.base.name, start, held)
        common, dtype = held[: job.common - start], source.base.dtype
        if source.exact is not None:
            lost &= _finite(source.exact.part(chunk, common, dtype), source.exact.dtype)
        else:
            lost[: len(common)] &= _finite(common, dtype)
            for term in _own_terms(source):
                if isinstance(term, StoredTerm):
                    lost[: len(common)] &= _finite(term.rows.part(chunk, common, dtype), term.rows.dtype)
    return int(np.count_nonzero(lost))


def _finite(elements: Elements, dtype: DType) -> NDArray[np.bool_]:
    return rounding.is_finite(elements, dtype) if dtype.is_delta else np.ones(len(elements), np.bool_)


def _own_terms(source: FromBase) -> Iterator[TermSource]:
    """Yield the terms of single packs; a merge method has those of several."""
    for term in source.terms:
        yield from chain.from_iterable(getattr(term, "by_pack", ((term,),)))


def make_chunk(job: TensorJob, chunk: int, held: Elements, buffers: Buffers) -> Elements:
    """Return the elements of a chunk of the result.

    Args:
        job: The tensor.
        chunk: Number of the chunk.
        held: The elements of the base's chunk, which are overwritten; none where it has no such chunk, or none is needed.
        buffers: Where terms are decoded.

    Returns:
        `[n]` in the storage type of the job; the memory of `held` where that can be.
    """
    start, parts = chunk * CHUNK, []
    common, rows, stop = held[: max(0, job.common - start)], job.source.rows, min(start + CHUNK, job.numel)
    if isinstance(job.source, FromBase) and job.source.exact is not None and start < stop:
        exact = job.source.exact
        parts.append(rounding.convert(exact.part(chunk, common, job.source.base.dtype), exact.dtype, job.dtype))
    elif isinstance(job.source, FromBase) and len(common):
        parts.append(_combine(job.source, job.dtype, chunk, common, buffers))
    if rows is not None and stop > max(start, rows.start):
        parts.append(rounding.convert(rows.read(max(start, rows.start), stop), rows.dtype, job.dtype))
    if not parts:
        return np.zeros(0, job.dtype.storage)
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _combine(made_of: FromBase, target: DType, chunk: int, base: Elements, buffers: Buffers) -> Elements:
    """Return base plus terms; `base` is overwritten."""
    source, terms, loops = made_of.base.dtype, made_of.terms, kernels.active()
    if not terms:
        return rounding.convert(base, source, target)
    scratch = buffers.scratch(len(base))
    if len(terms) == 1 and source == target:
        terms[0].add_to(chunk, base, source, scratch)
        return base
    if source == target and all(isinstance(term, PackTerm) for term in terms):
        add_terms(
            [OneTerm(term.blob, term.term, term.factor) for term in terms if isinstance(term, PackTerm)], chunk, base, source, scratch
        )
        return base
    parts = [term.chunk(chunk, base, source, scratch) for term in terms]
    if source != target:
        return loops.add_sparse(base, source, target, *loops.sum_terms(len(base), parts))
    loops.add_in_place(base, source, parts)
    return base
