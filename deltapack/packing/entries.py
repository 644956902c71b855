"""Turn the chunk outcomes of one tensor into its blobs and its entry in the index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.stored import stored_layout
from deltapack.errors import NonFiniteError
from deltapack.format.codecs import INDEX_CODECS
from deltapack.format.digest import chunk_count, root_digest
from deltapack.format.frames import pack_stream
from deltapack.format.index import BaseRef, BlobRef, Entry, ExactStep, Stats, Term
from deltapack.format.table import Layout
from deltapack.format.writer import PackWriter, StoredChunk
from deltapack.kernels.buffers import Buffers
from deltapack.packing.encoding import ChunkOutcome, encode_chunk, encode_tail_chunk
from deltapack.packing.planning import DeltaPlan, PackPlan, WholePlan, plan_whole
from deltapack.packing.recipe import Recipe
from deltapack.sparsify.dare import ALL_KEPT

__all__ = ["Digests", "EntryWriter", "unchanged"]


@dataclass
class Digests:
    """Chunk digests of one tensor, collected as its chunks pass: of the base, of the result, of the fine-tune where equal."""

    base: list[bytes] = field(default_factory=list)
    result: list[bytes] = field(default_factory=list)
    tuned: list[bytes] = field(default_factory=list)

    def add(self, outcome: ChunkOutcome) -> None:
        """Take the digests of the next chunk."""
        pairs = (
            (self.base, outcome.base_digest),
            (self.result, outcome.result_digest),
            (self.tuned, outcome.tuned_digest),
        )
        for digests, digest in pairs:
            if digest is not None:
                digests.append(digest)

    def base_root(self, base: TensorInfo) -> str:
        """Return the root digest of the base tensor."""
        return root_digest(base.dtype.name, base.shape, self.base)


@dataclass(frozen=True)
class EntryWriter:
    """Writes one entry after the other.

    Attributes:
        writer: The pack.
        base: The base, for tensors that turn out to need another code.
        finetuned: The fine-tune, for these and for tensors that turn out to be kept whole.
        recipe: What the user asked for.
        split: Stored bytes by use, added up here.
    """

    writer: PackWriter
    base: Checkpoint
    finetuned: Checkpoint
    recipe: Recipe
    split: dict[str, int]

    def write(self, plan: PackPlan, outcomes: Iterable[ChunkOutcome]) -> tuple[Entry, Digests]:
        """Write the blobs of one tensor of the fine-tune.

        Raises:
            NonFiniteError: It holds NaN or Inf where it differs from the base, or overflows when rescaled.
        """
        return self._delta(plan, outcomes) if isinstance(plan, DeltaPlan) else self._whole(plan, outcomes)

    def _whole(self, plan: WholePlan, outcomes: Iterable[ChunkOutcome]) -> tuple[Entry, Digests]:
        start, digests, equal, twin = self.writer.end, Digests(), True, plan.twin
        blob = self.writer.chunked_blob(stored_layout(plan.tensor.numel))  # that of a step of an exact entry, too
        for outcome in outcomes:
            digests.add(outcome)
            equal = equal and outcome.equal
            if outcome.whole is not None:
                blob.append(outcome.whole)
        if equal and twin is not None:
            self.writer.rewind(start)
            return unchanged(plan.tensor, twin, digests), digests
        return self._stored(plan, blob.close(), digests), digests

    def _delta(self, plan: DeltaPlan, outcomes: Iterable[ChunkOutcome]) -> tuple[Entry, Digests]:
        start, digests = self.writer.end, Digests()
        dense = () if plan.factors is None else (plan.factors.term(plan.common, self.writer.plain_blob(plan.factors.stored())),)
        term = _sparse_term(plan)
        blob = self.writer.chunked_blob(Layout(plan.common, len(term.streams), has_counts=True)) if plan.residual else None
        equal, finite, overflow, altered, l1, largest, nnz = True, True, False, False, 0.0, 0.0, 0
        split: dict[str, int] = {}
        for outcome in outcomes:
            digests.add(outcome)
            equal, finite, overflow = equal and outcome.equal, finite and outcome.finite, overflow or outcome.overflow
            altered = altered or outcome.altered
            l1, largest = l1 + outcome.l1, max(largest, outcome.max_abs)
            if blob is not None and outcome.term is not None:
                blob.append(outcome.term)
                nnz += sum(outcome.term.counts)
                for stream, stored in zip(term.streams, outcome.term.streams, strict=True):
                    split[stream] = split.get(stream, 0) + len(stored)
        same_type, same_shape = plan.base.dtype == plan.tensor.dtype, plan.base.shape == plan.tensor.shape
        if equal and same_type and same_shape:
            self.writer.rewind(start)
            return unchanged(plan.tensor, plan.base, digests), digests
        if not finite or (overflow and not equal):
            self._refuse_non_finite(plan, finite)
            return self._store_instead(plan, start)
        if altered and not equal:
            self.writer.rewind(start)
            sparing = plan.sparing_odd()
            return self._delta(sparing, self._encoded(sparing))
        terms: tuple[Term, ...] = dense
        if equal:
            self.writer.rewind(start)
            terms = ()
        elif blob is not None:
            ref = blob.close()
            split["tables"] = ref.length - sum(split.values())
            scaling = plan.codec.scaling
            lines = self.writer.plain_blob(pack_stream(scaling.raw)) if scaling is not None and scaling.raw else None
            split |= {} if lines is None else {"scales": lines.length}
            terms += (replace(term, nnz=nnz, blob=ref, lines=lines),)
        if sum(blob.length for term in terms for blob in term.blobs) >= plan.common * plan.tensor.dtype.itemsize:
            return self._store_instead(plan, start)
        if terms:
            self._count(split | ({"factors": dense[0].blob.length} if dense else {}))
        result = digests.tuned if equal else digests.result
        stats = Stats(f"{l1:.7g}", f"{largest:.7g}")
        return self._with_base(plan, digests, terms, self._tail(plan), result, stats), digests

    def _encoded(self, plan: PackPlan) -> Iterable[ChunkOutcome]:
        """Encode a tensor once more, by another plan."""
        buffers, of_base = Buffers(), 0 if plan.base is None else plan.base.numel
        for chunk in range(chunk_count(max(plan.tensor.numel, of_base))):
            yield encode_chunk(self.base, self.finetuned, plan, chunk, buffers)

    def _with_base(
        self,
        plan: DeltaPlan,
        digests: Digests,
        terms: tuple[Term, ...],
        tail: BlobRef | None,
        result: list[bytes],
        stats: Stats,
    ) -> Entry:
        tensor, base = plan.tensor, plan.base
        rows = tensor.numel - base.numel
        entry = Entry(
            tensor.name,
            "delta" if tensor.shape == base.shape else "grown" if rows > 0 else "shrunk",
            tensor.dtype,
            tensor.shape,
            root_digest(tensor.dtype.name, tensor.shape, result),
            base=_base_ref(base, digests),
            terms=terms,
            stored=tail,
            stats=stats,
        )
        return self.writer.chunk_digests(entry, digests.base, result)

    def _tail(self, plan: DeltaPlan) -> BlobRef | None:
        rest = plan.tensor.numel - plan.common
        if rest == 0:
            return None
        layout = stored_layout(rest)
        chunks = (encode_tail_chunk(self.finetuned, plan, chunk) for chunk in range(layout.chunks))
        return self._stored_blob(layout, chunks)

    def _store_instead(self, plan: DeltaPlan, start: int) -> tuple[Entry, Digests]:
        """Drop the term written since `start` and keep the tensor as it is, reading it once more."""
        self.writer.rewind(start)
        whole = plan_whole(self.base, self.finetuned, plan.tensor, plan.base, self.recipe)
        return self._whole(whole, self._encoded(whole))

    def _stored_blob(self, layout: Layout, chunks: Iterable[StoredChunk]) -> BlobRef:
        blob = self.writer.chunked_blob(layout)
        for chunk in chunks:
            blob.append(chunk)
        ref = blob.close()
        self._count({"stored": ref.length})
        return ref

    def _stored(self, plan: WholePlan, blob: BlobRef, digests: Digests) -> Entry:
        tensor, entry = plan.tensor, plan.entry
        self._count({entry.kind: blob.length})
        root = root_digest(tensor.dtype.name, tensor.shape, digests.result)
        entry = replace(entry, digest=root, base=None if plan.base is None else _base_ref(plan.base, digests))
        entry = replace(entry, exact=(ExactStep(blob),)) if plan.exact else replace(entry, stored=blob)
        return self.writer.chunk_digests(entry, digests.base, digests.result)

    def _refuse_non_finite(self, plan: DeltaPlan, finite: bool) -> None:
        if self.recipe.non_finite == "store":
            return
        name, path = plan.tensor.name, self.finetuned.path
        if finite:
            what = "a restored element overflows" + ("" if plan.recipe.budgeted else " when rescaled")
            hint = f"{_less_noise(plan)}, or store it whole with --non-finite store."
            raise NonFiniteError(what, path=path, tensor=name, expected=f"numbers of {plan.tensor.dtype.name}", hint=hint)
        hint = "Mend the checkpoint, or store such tensors whole with --non-finite store."
        raise NonFiniteError("the difference to the base holds NaN or infinity", path=path, tensor=name, hint=hint)

    def _count(self, stored: dict[str, int]) -> None:
        for use, nbytes in stored.items():
            self.split[use] = self.split.get(use, 0) + nbytes


def _less_noise(plan: DeltaPlan) -> str:
    """Return what brings restored elements nearer to the fine-tune's, in the terms in which the pack was asked for."""
    name = plan.tensor.name
    if plan.recipe.budgeted:
        return f"Use a larger budget, or keep it bit for bit with --set '{name}:role=exact'"
    if not plan.recipe.unbiased:
        return f"Use a smaller factor or --set '{name}:rescale=1'"
    if plan.recipe.keep == ALL_KEPT:
        return f"Use finer values or --set '{name}:values=f32'"
    return f"Use a lower drop rate or --set '{name}:drop-rate=0.5'"


def _sparse_term(plan: DeltaPlan) -> Term:
    """Return the sparse term of a plan, as far as the plan tells."""
    codec, scaling = plan.codec, plan.codec.scaling
    keep, key = (plan.recipe.keep, plan.key) if INDEX_CODECS[codec.index].kept == "random" else (0, 0)
    kind, scale = ("", 0.0) if scaling is None else (scaling.kind, scaling.lines.scale)
    return Term(codec.index, codec.values, plan.recipe.factor, 0, BlobRef(0, 0, ""), keep, key, codec.shift, kind, scale)


def unchanged(tensor: TensorInfo, base: TensorInfo, digests: Digests) -> Entry:
    """Return the entry of a tensor that is the base's."""
    ref = _base_ref(base, digests)
    return Entry(tensor.name, "unchanged", tensor.dtype, tensor.shape, ref.digest, ref)


def _base_ref(base: TensorInfo, digests: Digests) -> BaseRef:
    return BaseRef(base.name, base.dtype, base.shape, digests.base_root(base), base.arranged)
