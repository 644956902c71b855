"""About how many bytes a tensor will take, by a sample of its chunks."""

from __future__ import annotations

from collections.abc import Sequence

from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.errors import NonFiniteError
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.frames import pack_stream
from deltapack.format.table import Layout
from deltapack.format.writer import StoredChunk
from deltapack.kernels.buffers import Buffers
from deltapack.packing.encoding import ChunkOutcome, encode_chunk
from deltapack.packing.inputs import Inputs
from deltapack.packing.planning import DeltaPlan, PackPlan, WholePlan, plan_whole

__all__ = ["ENTRY_BYTES", "TERM_BYTES", "foresee", "tail_bytes"]

_SAMPLED = 2
"""Chunks of a tensor that are encoded to foresee its size."""

ENTRY_BYTES, TERM_BYTES = 90, 30
"""What an entry takes in the compressed index, about, and each term of it but the first; most of it are digests."""


def foresee(inputs: Inputs, plan: PackPlan, buffers: Buffers) -> tuple[str, int]:
    """Return the entry kind of a tensor and the bytes that a sample of its chunks lets expect.

    Raises:
        NonFiniteError: A sampled chunk overflows the value codec that the recipe names, or its difference is not finite.
    """
    numel = max(plan.tensor.numel, plan.base.numel if plan.base is not None else 0)
    chunks = max(1, chunk_count(numel))
    chosen = sorted({chunk * chunks // _SAMPLED for chunk in range(_SAMPLED)})
    return _foreseen(inputs, plan, [encode_chunk(inputs.base, inputs.finetuned, plan, chunk, buffers) for chunk in chosen])


def _foreseen(inputs: Inputs, plan: PackPlan, outcomes: Sequence[ChunkOutcome]) -> tuple[str, int]:
    tensor, equal = plan.tensor, all(outcome.equal for outcome in outcomes)
    if isinstance(plan, WholePlan):
        if equal and plan.twin is not None:
            return "unchanged", 0
        return plan.entry.kind, _scaled([outcome.whole for outcome in outcomes], tensor.numel, stored_layout(tensor.numel))
    same = plan.base.dtype == tensor.dtype and plan.base.shape == tensor.shape
    if equal and same:
        return "unchanged", 0
    if not all(outcome.finite for outcome in outcomes):
        if inputs.asked.recipe.non_finite == "error":
            hint = "Mend the checkpoint, or store such tensors whole with --non-finite store."
            raise NonFiniteError(
                "the difference to the base holds NaN or infinity", path=inputs.finetuned.path, tensor=tensor.name, hint=hint
            )
        return _kept_whole(inputs, plan)
    terms = [outcome.term for outcome in outcomes if outcome.term is not None]
    size = _scaled(terms, plan.common, Layout(plan.common, len(terms[0].streams) if terms else 1, has_counts=True)) + _beside(plan)
    if size >= plan.common * tensor.dtype.itemsize:
        return _kept_whole(inputs, plan)
    kind = "delta" if tensor.shape == plan.base.shape else "grown" if tensor.numel > plan.base.numel else "shrunk"
    return kind, size + tail_bytes(inputs, plan)


def _kept_whole(inputs: Inputs, plan: DeltaPlan) -> tuple[str, int]:
    """Return kind and bytes of a tensor that turns out to be no difference that is worth storing."""
    whole = plan_whole(inputs.base, inputs.finetuned, plan.tensor, plan.base, inputs.asked.recipe)
    sample = encode_chunk(inputs.base, inputs.finetuned, whole, 0, Buffers()).whole
    return whole.entry.kind, _scaled([sample], plan.tensor.numel, stored_layout(plan.tensor.numel))


def _scaled(sampled: Sequence[StoredChunk | None], numel: int, layout: Layout) -> int:
    """Return the bytes of a blob of `numel` elements from those of the first chunks sampled."""
    chunks = [chunk for chunk in sampled if chunk is not None]
    if not chunks:
        return 0
    seen = min(numel, len(chunks) * CHUNK)
    return layout.table_bytes + round(sum(len(stream) for chunk in chunks for stream in chunk.streams) * numel / max(1, seen))


def _beside(plan: DeltaPlan) -> int:
    """Return the bytes of factors, and of scales of rows."""
    scaling = plan.codec.scaling
    lines = len(pack_stream(scaling.raw)) if plan.residual and scaling is not None and scaling.raw else 0
    return lines + (0 if plan.factors is None else len(plan.factors.stored()))


def tail_bytes(inputs: Inputs, plan: DeltaPlan) -> int:
    """Return about what the elements after those that both have take, which are stored whole."""
    start, stop = plan.common, plan.tensor.numel
    if stop <= start:
        return 0
    sample = encode_stored_chunk(inputs.finetuned.read(plan.tensor.name, start, min(stop, start + CHUNK)))
    return _scaled([sample], stop - start, stored_layout(stop - start))
