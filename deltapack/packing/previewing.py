"""Use case: what a compression would do to each tensor, and about how large the pack would be; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.errors import NonFiniteError
from deltapack.format.canonical import dump_canonical
from deltapack.format.containers import restored_weight_files
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.frames import compress_frame
from deltapack.format.metadata import optional_metadata
from deltapack.format.table import Layout
from deltapack.format.writer import INDEX_LEVEL, StoredChunk, stored_side_file
from deltapack.kernels.buffers import Buffers
from deltapack.packing.containers import heads_to_write
from deltapack.packing.encoding import ChunkOutcome, encode_chunk
from deltapack.packing.inputs import Asked, Inputs, open_inputs
from deltapack.packing.metadata import carried_metadata
from deltapack.packing.planning import DeltaPlan, PackPlan, WholePlan, plan_whole
from deltapack.packing.recipe import Recipe
from deltapack.packing.report import left_out_notes
from deltapack.packing.sharing import planned
from deltapack.packing.sides import sides_with_base
from deltapack.parallel import ordered_map, resolve_workers
from deltapack.reports import CompressPreview, PreviewRow, Progress

__all__ = ["preview_compress"]

_SAMPLED = 2
"""Chunks of a tensor that are encoded to foresee its size."""

_ENTRY_BYTES = 90
"""What an entry takes in the compressed index, about; most of it are digests."""


def preview_compress(
    base: str | Path,
    finetuned: str | Path,
    *,
    recipe: Recipe | None = None,
    name_map: Sequence[tuple[str, str]] = (),
    include_code: bool = False,
    keep_base: str | None = None,
    allow_unrelated: bool = False,
    weight_files: str | None = None,
    max_side_file: int | str | None = None,
    leave_out: Sequence[str] = (),
    base_packs: Sequence[str | Path] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> CompressPreview:
    """Check a compression and foresee it: the route of each tensor, its size, what a person should be warned of.

    Encodes at most two chunks of a tensor, 1,048,576 elements each. The arguments are those of `deltapack.compress`, and what that refuses
    before it packs is refused here, too.

    Raises:
        BaseMismatchError: Most of the fine-tune has nothing to do with the base, or `base_packs` are no chain from it.
        CheckpointError: An input is damaged or not a checkpoint.
        FormatError: One of `base_packs` is damaged.
        LimitError: A side file is larger than `max_side_file`, or there are more than 1,000 packs in a chain.
        NonFiniteError: A sampled chunk overflows the value codec that the recipe names.
        RecipeError: A setting is out of range or of another type, or would do nothing.
        UnsupportedError: Quantised codes would be paired with weights, or the fine-tune's folder has weights that are not read.
    """
    asked = Asked(
        Recipe() if recipe is None else recipe,
        name_map,
        include_code,
        keep_base,
        allow_unrelated,
        weight_files,
        max_side_file,
        leave_out,
        base_packs,
    )
    count = resolve_workers(workers)
    with open_inputs(base, finetuned, asked) as inputs:
        plans, tables = planned(inputs, count)
        rows = _rows(inputs, plans, count, progress or (lambda done, total: None))
        side = sum(len(stored_side_file(*file)[0]) for file in sides_with_base(inputs.base, inputs.files) if file[1] != file[2])
        metadata, too_long = carried_metadata(inputs.finetuned.metadata)
        exact = inputs.asked.recipe.exact is True
        heads, no_heads = heads_to_write(inputs.finetuned, inputs.survey.kept) if exact else ((), [])
        notes = [*inputs.notes(), *left_out_notes(inputs.left_out, "would leave out", exact=exact), *too_long, *no_heads]
        checkpoint_bytes = sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values())
    strings = len(compress_frame(dump_canonical(optional_metadata(metadata)), INDEX_LEVEL))
    size = sum(row.bytes for row in rows) + sum(map(len, tables)) + _ENTRY_BYTES * len(rows) + strings + side
    pieces = {name for tensor in inputs.base.tensors.values() if tensor.arranged is not None for name in tensor.arranged.names}
    kinds = dict(sorted(Counter(row.kind for row in rows if row.kind != "removed" or row.name not in pieces).items()))
    return CompressPreview(size, checkpoint_bytes, side, kinds, rows, inputs.survey.warnings, notes, restored_weight_files(heads))


def _rows(inputs: Inputs, plans: Iterable[PackPlan], workers: int, progress: Progress) -> list[PreviewRow]:
    total, done, buffers = sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values()), 0, Buffers()
    rows = []
    for plan, row in ordered_map(lambda plan: (plan, _row(inputs, plan, buffers)), plans, workers):
        rows.append(row)
        done += plan.tensor.nbytes
        progress(done, total)
    for name in inputs.only_base():
        tensor = inputs.base.files.tensors[name]
        kind = "unchanged" if name in inputs.survey.kept else "removed"
        rows.append(PreviewRow(name, "", kind, tensor.dtype.name, tensor.shape, name, "", "", 0))
    rows += [PreviewRow(name, "", "alias", "", (), of, "", "", 0) for name, of in inputs.finetuned.aliases.items()]
    return sorted(rows, key=lambda row: row.name.encode())


def _row(inputs: Inputs, plan: PackPlan, buffers: Buffers) -> PreviewRow:
    tensor, base = plan.tensor, plan.base
    numel = max(tensor.numel, base.numel if base is not None else 0)
    chunks = max(1, chunk_count(numel))
    chosen = sorted({chunk * chunks // _SAMPLED for chunk in range(_SAMPLED)})
    outcomes = [encode_chunk(inputs.base, inputs.finetuned, plan, chunk, buffers) for chunk in chosen]
    kind, size = _foresee(inputs, plan, outcomes)
    index, values = (
        (plan.codec.index, plan.codec.values) if isinstance(plan, DeltaPlan) and kind not in ("unchanged", "exact", "stored") else ("", "")
    )
    role = inputs.survey.settled[tensor.name]
    used = base is not None and kind != "stored" and (kind != "exact" or WholePlan(tensor, base).entry.partner is not None)
    name = (base.arranged.label if base.arranged is not None else base.name) if base is not None and used else ""
    return PreviewRow(tensor.name, role, kind, tensor.dtype.name, tensor.shape, name, index, values, size)


def _foresee(inputs: Inputs, plan: PackPlan, outcomes: Sequence[ChunkOutcome]) -> tuple[str, int]:
    """Return the entry kind and the bytes that a sample of chunks lets expect."""
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
    size = _scaled(terms, plan.common, Layout(plan.common, len(terms[0].streams) if terms else 1, has_counts=True))
    if size >= plan.common * tensor.dtype.itemsize:
        return _kept_whole(inputs, plan)
    kind = "delta" if tensor.shape == plan.base.shape else "grown" if tensor.numel > plan.base.numel else "shrunk"
    return kind, size + _stored_bytes(inputs, tensor.name, plan.common, tensor.numel)


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


def _stored_bytes(inputs: Inputs, name: str, start: int, stop: int) -> int:
    """Return about what the elements [start, stop) take when they are stored whole."""
    if stop <= start:
        return 0
    sample = encode_stored_chunk(inputs.finetuned.read(name, start, min(stop, start + CHUNK)))
    return _scaled([sample], stop - start, stored_layout(stop - start))
