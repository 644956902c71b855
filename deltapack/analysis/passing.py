"""The passes over two checkpoints that an analysis makes: sizes of all differences, then directions of those of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from deltapack import kernels
from deltapack.analysis.statistics import DeltaStats, combined, stats_of
from deltapack.checkpoint import TensorInfo
from deltapack.format.digest import CHUNK
from deltapack.kernels import rounding
from deltapack.kernels.buffers import Buffers
from deltapack.packing.alike import survey_alike
from deltapack.packing.inputs import Inputs
from deltapack.packing.knowing import Surveyed
from deltapack.packing.planning import DeltaPlan, PackPlan
from deltapack.parallel import ordered_map
from deltapack.reports import Progress

__all__ = ["Looked", "look_at"]

_READS = 1
"""What a weight's directions take, in readings of it, about: few rows are read, but multiplied again and again."""


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        plans: How each tensor would be packed without a budget, in the order of a pack.
        stats: Sizes of the differences of each tensor of which one can be taken, by name.
        weights: What budgets ask of weights that changed, by name.
    """

    plans: tuple[PackPlan, ...]
    stats: dict[str, DeltaStats]
    weights: dict[str, Surveyed]


def look_at(inputs: Inputs, workers: int, progress: Progress) -> Looked:
    """Make the passes.

    Args:
        inputs: Base and fine-tune; their recipe has a budget.
        workers: Threads.
        progress: Called with bytes of the fine-tune that were read so far and in all.
    """
    plans = tuple(inputs.plans(workers))
    pairs = list(_pairs(inputs))
    weights = [plan for plan in plans if isinstance(plan, DeltaPlan) and plan.recipe.budgeted and plan.common > 0]
    total = sum(tensor.nbytes for tensor, _ in pairs) + _READS * sum(plan.tensor.nbytes for plan in weights)
    counted = _Counted(total, progress)
    stats = _stats(inputs, pairs, workers, counted)
    changed = [plan for plan in weights if stats[plan.tensor.name].squares > 0 and not stats[plan.tensor.name].odd]
    counted.add(_READS * sum(plan.tensor.nbytes for plan in weights if plan not in changed))
    surveyed = survey_alike(inputs.base, inputs.finetuned, changed, workers, lambda plan: counted.add(_READS * plan.tensor.nbytes))
    return Looked(plans, stats, surveyed)


@dataclass
class _Counted:
    """Adds up bytes and tells them."""

    total: int
    progress: Progress
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


def _pairs(inputs: Inputs) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Yield the tensors of which a difference can be taken, with their partners, in the order of a pack."""
    partners = inputs.partners()
    for name in sorted(inputs.finetuned.tensors, key=str.encode):
        tensor = inputs.finetuned.tensors[name]
        partner = inputs.base.tensors[partners[name]] if name in partners else None
        if partner is None or not (tensor.dtype.is_delta and partner.dtype.is_delta and min(tensor.numel, partner.numel)):
            continue
        if tensor.shape == partner.shape or (tensor.shape and tensor.shape[1:] == partner.shape[1:]):
            yield tensor, partner


def _stats(inputs: Inputs, pairs: list[tuple[TensorInfo, TensorInfo]], workers: int, counted: _Counted) -> dict[str, DeltaStats]:
    """Return the sizes of all differences, chunk by chunk, added up in order."""
    buffers = Buffers()

    def work(task: tuple[TensorInfo, TensorInfo, int]) -> tuple[str, int, DeltaStats]:
        tensor, partner, start = task
        stop = min(start + CHUNK, tensor.numel, partner.numel)
        tuned = buffers.take("finetuned", tensor.dtype.storage, stop - start)
        elements = buffers.take("base", partner.dtype.storage, stop - start)
        inputs.finetuned.read_into(tensor.name, start, tuned)
        inputs.base.read_into(partner.name, start, elements)
        out = buffers.take("difference", "<f4", stop - start).view(np.float32)
        delta = kernels.active().difference(elements, partner.dtype, tuned, tensor.dtype, out)
        return tensor.name, (stop - start) * tensor.dtype.itemsize, stats_of(delta, rounding.to_f32(elements, partner.dtype))

    tasks = ((tensor, partner, start) for tensor, partner in pairs for start in range(0, min(tensor.numel, partner.numel), CHUNK))
    found = {}
    with closing(ordered_map(work, tasks, workers)) as results:
        for name, group in groupby(results, key=lambda result: result[0]):
            parts = list[DeltaStats]()
            for _, nbytes, part in group:
                parts.append(part)
                counted.add(nbytes)
            found[name] = combined(parts)
    rest = sum(tensor.nbytes - min(tensor.numel, partner.numel) * tensor.dtype.itemsize for tensor, partner in pairs)
    counted.add(rest)
    return found
