"""Use case: what a compression would do to each tensor, and about how large the pack would be; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltapack.format.canonical import dump_canonical
from deltapack.format.codecs import FACTORS
from deltapack.format.containers import restored_weight_files
from deltapack.format.frames import compress_frame
from deltapack.format.metadata import optional_metadata
from deltapack.format.writer import INDEX_LEVEL, stored_side_file
from deltapack.kernels.buffers import Buffers
from deltapack.packing.allocation import LEAST_RATE
from deltapack.packing.containers import heads_to_write
from deltapack.packing.fitting import fit
from deltapack.packing.foreseeing import ENTRY_BYTES, TERM_BYTES, foresee
from deltapack.packing.inputs import Asked, Inputs, open_inputs
from deltapack.packing.metadata import carried_metadata
from deltapack.packing.passes import Passes
from deltapack.packing.planning import DeltaPlan, PackPlan, WholePlan
from deltapack.packing.recipe import Recipe
from deltapack.packing.report import left_out_notes, loss_warnings
from deltapack.packing.sharing import planned
from deltapack.packing.sides import sides_with_base
from deltapack.parallel import ordered_map, resolve_workers
from deltapack.reports import CompressPreview, PreviewRow, Progress
from deltapack.sources.inputs import guarded

__all__ = ["preview_compress"]

_LEAST, _INEXACT = 1.001, 1.05
"""How near a rate is to the least one, and how much larger than its budget a pack may be foreseen to be: the estimate is no better."""


@guarded
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
    follow_links: bool = False,
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
        follow_links,
    )
    count = resolve_workers(workers)
    with open_inputs(base, finetuned, asked) as inputs:
        passes = Passes(progress or (lambda done, total: None))
        plans, tables, loss, allowed = _plans(inputs, count, passes)
        rows = _rows(inputs, plans, count, passes)
        side = sum(len(stored_side_file(*file)[0]) for file in sides_with_base(inputs.base, inputs.files) if file[1] != file[2])
        metadata, too_long = carried_metadata(inputs.finetuned.metadata)
        exact = inputs.asked.recipe.exact is True
        heads, no_heads = heads_to_write(inputs.finetuned, inputs.survey.kept) if exact else ((), [])
        notes = [*inputs.notes(), *left_out_notes(inputs.left_out, "would leave out", exact=exact), *too_long, *no_heads]
        checkpoint_bytes = sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values())
    strings = len(compress_frame(dump_canonical(optional_metadata(metadata)), INDEX_LEVEL))
    more_terms = sum(row.values.count("+") for row in rows)
    size = sum(row.bytes for row in rows) + sum(map(len, tables)) + ENTRY_BYTES * len(rows) + TERM_BYTES * more_terms + strings + side
    pieces = {name for tensor in inputs.base.tensors.values() if tensor.arranged is not None for name in tensor.arranged.names}
    kinds = dict(sorted(Counter(row.kind for row in rows if row.kind != "removed" or row.name not in pieces).items()))
    warnings = [*inputs.survey.warnings, *loss_warnings(loss or 0.0), *_too_large(size, allowed)]
    return CompressPreview(size, checkpoint_bytes, side, kinds, rows, warnings, notes, restored_weight_files(heads), loss)


def _too_large(size: int, allowed: int | None) -> list[str]:
    if allowed is None or size <= _INEXACT * allowed:
        return []
    return [
        f"the budget allows {allowed:,} bytes, and the smallest pack would take about {size:,}, so `deltapack compress` would refuse it: "
        "vectors, exact tensors, side files and the index are counted, too."
    ]


def _plans(inputs: Inputs, workers: int, passes: Passes) -> tuple[Iterable[PackPlan], tuple[bytes, ...], float | None, int | None]:
    """Return the plans of all tensors, the tables that they share, and of a budget its expected loss, and its bytes if they are few."""
    budget = inputs.asked.recipe.target
    if budget is None:
        return *planned(inputs, workers), None, None
    fitting = fit(inputs, budget, workers, passes)
    attempt = fitting.first()
    least = not fitting.weights or attempt.rates.spent <= _LEAST * LEAST_RATE
    return attempt.plans, (), attempt.loss, fitting.target if least else None


def _rows(inputs: Inputs, plans: Iterable[PackPlan], workers: int, passes: Passes) -> list[PreviewRow]:
    total, done, buffers = sum(tensor.nbytes for tensor in inputs.finetuned.tensors.values()), 0, Buffers()
    rows, progress = [], passes.begin(total)
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
    kind, size = foresee(inputs, plan, buffers)
    index, values = _codecs(plan) if isinstance(plan, DeltaPlan) and kind not in ("unchanged", "exact", "stored") else ("", "")
    role = inputs.survey.settled[tensor.name]
    used = base is not None and kind != "stored" and (kind != "exact" or WholePlan(tensor, base).entry.partner is not None)
    name = (base.arranged.label if base.arranged is not None else base.name) if base is not None and used else ""
    return PreviewRow(tensor.name, role, kind, tensor.dtype.name, tensor.shape, name, index, values, size)


def _codecs(plan: DeltaPlan) -> tuple[str, str]:
    """Return the codecs of a tensor's positions and of its values, as `inspect` shows them."""
    terms = [("all", FACTORS.name)] if plan.factors is not None else []
    terms += [(plan.codec.index, plan.codec.values)] if plan.residual else []
    return "+".join(index for index, _ in terms), "+".join(values for _, values in terms)
