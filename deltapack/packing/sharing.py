"""The tables that chunks of an exact pack share, learned from a sample of what it will hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from deltapack.checkpoint import Checkpoint
from deltapack.codecs.exact_entry import padded_base
from deltapack.codecs.exact_sharing import Sample, learn_tables
from deltapack.codecs.exact_tables import SharedTables
from deltapack.format.digest import CHUNK
from deltapack.packing.inputs import Inputs
from deltapack.packing.planning import PackPlan, WholePlan

__all__ = ["planned"]

_MOST_SAMPLES, _LONGEST = 96, 1 << 18
"""Chunks that are looked at, and elements of each: a tenth of a second, whatever the model."""


def planned(inputs: Inputs, workers: int) -> tuple[Iterable[PackPlan], tuple[bytes, ...]]:
    """Return what becomes of each tensor, and the tables that they share, as blobs; none but where all is exact.

    In other packs few tensors are exact, and their chunks have tables of their own.
    """
    plans = inputs.plans(workers)
    if inputs.asked.recipe.exact is not True:
        return plans, ()
    all_plans = list(plans)
    tables = _shared_tables(inputs.base, inputs.finetuned, all_plans)
    shared = SharedTables(tables)
    return [replace(plan, tables=shared) if isinstance(plan, WholePlan) else plan for plan in all_plans], tables


def _shared_tables(base: Checkpoint, finetuned: Checkpoint, plans: Sequence[PackPlan]) -> tuple[bytes, ...]:
    """Return tables for the tensors that are coded exactly after one of the base. A pack of one chunk has nothing to share."""
    coded = [plan for plan in plans if isinstance(plan, WholePlan) and plan.exact and plan.entry.partner is not None]
    chunks = [(plan, start) for plan in coded for start in range(0, plan.tensor.numel, CHUNK)]
    if len(chunks) < 2:
        return ()
    chosen = [chunks[number * len(chunks) // _MOST_SAMPLES] for number in range(_MOST_SAMPLES)] if len(chunks) > _MOST_SAMPLES else chunks
    return learn_tables(_samples(base, finetuned, chosen))


def _samples(base: Checkpoint, finetuned: Checkpoint, chosen: Sequence[tuple[WholePlan, int]]) -> Iterator[Sample]:
    for plan, start in chosen:
        tensor, partner = plan.tensor, plan.base
        assert partner is not None
        stop = min(start + _LONGEST, tensor.numel)
        before = base.read(partner.name, min(start, partner.numel), min(stop, partner.numel))
        padded = padded_base(before, partner.dtype, tensor.dtype, stop - start)
        if padded is not None:
            yield Sample(padded, finetuned.read(tensor.name, start, stop), tensor.dtype)
