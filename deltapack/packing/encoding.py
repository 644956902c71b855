"""Encode one chunk of one tensor: pure functions from elements to `ChunkOutcome`, run by many threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltapack import kernels
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import encode_term_chunk
from deltapack.codecs.exact_entry import stored_exact
from deltapack.codecs.factors import NOTHING_KEPT, every_place
from deltapack.codecs.stored import encode_stored_chunk
from deltapack.dtypes import DType
from deltapack.errors import NonFiniteError
from deltapack.format.digest import CHUNK, chunk_digest
from deltapack.format.writer import StoredChunk
from deltapack.kernels import rounding
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements, Positions, Sparse
from deltapack.kernels.reference.encoding import same_bits
from deltapack.kernels.reference.positions import tile_counts
from deltapack.packing.planning import DeltaPlan, PackPlan, WholePlan, exact_chunk
from deltapack.sparsify import dare
from deltapack.sparsify.kept import Kept

__all__ = ["ChunkOutcome", "encode_chunk", "encode_tail_chunk"]

_NOTHING = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class ChunkOutcome:
    """What one chunk gave.

    Attributes:
        base_digest: Digest of the base's elements, if the base has this chunk.
        result_digest: Digest of the restored elements, if the result has this chunk.
        tuned_digest: Digest of the fine-tune's own elements; only where they are `equal`.
        term: The kept differences, if the chunk shares elements with the base.
        whole: The elements stored whole, if they may be needed.
        equal: Whether the base gives the fine-tune's bits here without any term.
        finite: Whether all differences are finite.
        overflow: Whether a kept or restored element is infinite because of the rescale, or of the codes.
        altered: Whether a NaN or infinity of base and fine-tune is kept and comes back with other bits: arithmetic gives one NaN, and
            float8_e5m2 no infinity (spec/06-arithmetic.md).
        l1: Sum of |difference|.
        max_abs: Largest |difference|.
        elements: Elements of the fine-tune that were read.
    """

    base_digest: bytes | None = None
    result_digest: bytes | None = None
    tuned_digest: bytes | None = None
    term: StoredChunk | None = None
    whole: StoredChunk | None = None
    equal: bool = True
    finite: bool = True
    overflow: bool = False
    altered: bool = False
    l1: float = 0.0
    max_abs: float = 0.0
    elements: int = 0


def encode_chunk(base: Checkpoint, finetuned: Checkpoint, plan: PackPlan, chunk: int, buffers: Buffers) -> ChunkOutcome:
    """Encode chunk number `chunk` of a tensor by the plan's route.

    Raises:
        NonFiniteError: A difference overflows the value codec that the recipe names.
    """
    elements = _chunk_of(base, plan.base, chunk, buffers, "base") if plan.base is not None else _NOTHING
    tuned = _chunk_of(finetuned, plan.tensor, chunk, buffers, "finetuned")
    base_digest = chunk_digest(elements) if len(elements) else None
    if isinstance(plan, WholePlan):
        equal = plan.twin is not None and same_bits(elements, tuned)
        digest = chunk_digest(tuned) if len(tuned) else None
        whole = _whole_chunk(plan, elements, tuned) if len(tuned) else None
        return ChunkOutcome(base_digest, digest, digest, whole=whole, equal=equal, elements=len(tuned))
    common = min(len(elements), len(tuned), max(0, plan.common - chunk * CHUNK))
    if common == 0:
        digest = chunk_digest(tuned) if len(tuned) else None
        return ChunkOutcome(base_digest, digest, digest, elements=len(tuned))
    return _encode_delta(plan, chunk, elements[:common], tuned, base_digest, buffers)


def _whole_chunk(plan: WholePlan, base: Elements, tuned: Elements) -> StoredChunk:
    return stored_exact(exact_chunk(plan.entry, base, tuned, plan.tables)) if plan.exact else encode_stored_chunk(tuned)


def encode_tail_chunk(finetuned: Checkpoint, plan: DeltaPlan, chunk: int) -> StoredChunk:
    """Encode chunk number `chunk` of the elements after the common ones, stored whole."""
    start = plan.common + chunk * CHUNK
    return encode_stored_chunk(finetuned.read(plan.tensor.name, start, min(start + CHUNK, plan.tensor.numel)))


def _encode_delta(
    plan: DeltaPlan, chunk: int, base: Elements, tuned: Elements, base_digest: bytes | None, buffers: Buffers
) -> ChunkOutcome:
    source, target, common, loops = plan.base.dtype, plan.tensor.dtype, len(base), kernels.active()
    l1, largest, equal = loops.compare(base, source, tuned[:common], target)
    if not np.isfinite(largest):
        # The tensor is refused, stored whole or unchanged in the end; the rest of it still needs its digests.
        digest = chunk_digest(tuned)
        return ChunkOutcome(base_digest, digest, digest, equal=equal, finite=False, elements=len(tuned))
    chosen = _kept(plan, chunk, base, tuned[:common], buffers) if plan.residual else None
    made = plan.sparsifier is not None or plan.factors is not None  # then kept values are more than differences, which are finite
    if chosen is not None and made and not np.isfinite(chosen.values).all():
        digest = chunk_digest(tuned)
        return ChunkOutcome(base_digest, digest, digest, equal=equal, overflow=True, elements=len(tuned))
    try:
        term, seen = _sparse(plan, chunk, base, chosen) if chosen is not None else (None, NOTHING_KEPT)
    except NonFiniteError as error:
        error.tensor = plan.tensor.name
        raise
    # Adding zeros may still turn -0.0 into +0.0, so the digest is of what a decoder does, equal or not.
    restored, positions = _restored(plan, chunk, base, seen, buffers)
    result = restored if len(tuned) == common else np.concatenate([restored, tuned[common:]])
    overflow, altered = _odd_ones(restored, tuned[:common], source, target, positions)
    return ChunkOutcome(
        base_digest,
        chunk_digest(result),
        chunk_digest(tuned) if equal else None,
        term=term,
        equal=equal,
        overflow=overflow,
        altered=altered,
        l1=l1,
        max_abs=largest,
        elements=len(tuned),
    )


def _restored(plan: DeltaPlan, chunk: int, base: Elements, seen: Sparse, buffers: Buffers) -> tuple[Elements, Positions]:
    """Return what a decoder will make of a chunk of the base, in its place if it has the same type, and which elements it changes."""
    source, target, loops, common = plan.base.dtype, plan.tensor.dtype, kernels.active(), len(base)
    if plan.factors is not None and source == target:
        loops.add_product(base, target, plan.factors.product(chunk * CHUNK, common, np.float32(1)), seen)
        return base, every_place(common)
    dense = [] if plan.factors is None else [plan.factors.sparse(chunk, common, np.float32(1), buffers.sparse(1, common))]
    terms = [*dense, seen] if plan.residual else dense
    if source != target:
        return loops.add_sparse(base, source, target, *loops.sum_terms(common, terms)), terms[0].positions
    loops.add_in_place(base, target, terms)
    return base, seen.positions


def _sparse(plan: DeltaPlan, chunk: int, base: Elements, chosen: Kept) -> tuple[StoredChunk, Sparse]:
    """Return a chunk of the sparse term, and what a decoder will see of it."""
    positions, counts, kept = chosen.positions, chosen.counts, chosen.values
    if plan.spares_odd:
        there = np.isfinite(rounding.to_f64(base[positions], plan.base.dtype))
        positions, kept = positions[there], kept[there]
        counts = tile_counts(positions, len(base))
    factor = np.float32(plan.recipe.factor)
    return encode_term_chunk(plan.codec, positions, kept, counts, len(base), factor, chunk * CHUNK)


def _kept(plan: DeltaPlan, chunk: int, base: Elements, tuned: Elements, buffers: Buffers) -> Kept:
    """Return what the sparse term keeps of a chunk: differences, or what factors leave of them."""
    source, target, loops, factors = plan.base.dtype, plan.tensor.dtype, kernels.active(), plan.factors
    if plan.sparsifier is None:
        room = buffers.sparse(0, len(base)).positions
        positions, counts = dare.select(plan.recipe.keep, plan.key, chunk, len(base), room, plan.codec.index)
        if factors is None:
            return Kept(positions, counts, loops.kept_differences(base, source, tuned, target, positions))
        product = factors.product(chunk * CHUNK, len(base), np.float32(1))
        return Kept(positions, counts, loops.kept_residuals(base, source, tuned, target, positions, product))
    delta = loops.difference(base, source, tuned, target)
    return plan.sparsifier.select(chunk, delta if factors is None else factors.residual(delta, chunk * CHUNK, len(base)))


def _odd_ones(restored: Elements, tuned: Elements, source: DType, target: DType, positions: Positions) -> tuple[bool, bool]:
    """Return whether a kept element overflowed, and whether one that is not finite in base and fine-tune has other bits now.

    Where the fine-tune is not finite the base is the same, for the differences are finite.
    """
    loops = kernels.active()
    narrow = target.itemsize == 1  # may have turned an infinity into a number
    if loops.are_finite(restored, target, positions) and not (narrow and not loops.are_finite(tuned, target, positions)):
        return False, False
    ours, theirs = restored[positions], tuned[positions]
    finite = np.isfinite(rounding.to_f64(theirs, target))
    overflow = not np.isfinite(rounding.to_f64(ours[finite], target)).all()
    return overflow, source == target and not same_bits(ours[~finite], theirs[~finite])


def _chunk_of(checkpoint: Checkpoint, tensor: TensorInfo, chunk: int, buffers: Buffers, name: str) -> Elements:
    start = min(chunk * CHUNK, tensor.numel)
    elements = buffers.take(name, tensor.dtype.storage, min(start + CHUNK, tensor.numel) - start)
    checkpoint.read_into(tensor.name, start, elements)
    return elements
