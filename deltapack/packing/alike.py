"""Weights that a checkpoint stores twice, as a head and the embedding that it is tied to: what is equal comes back equal.

Two masks from two keys would make two tensors of one. A program that ties them loads either, and one that does not may have both; so each
keeps its entry, and both have the plan of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from deltapack.checkpoint import Checkpoint
from deltapack.format.digest import CHUNK
from deltapack.kernels.reference.encoding import same_bits
from deltapack.packing.knowing import Surveyed, heads_of, survey_weights
from deltapack.packing.planning import DeltaPlan
from deltapack.parallel import ordered_map

__all__ = ["leaders", "survey_alike"]

_RUNS, _RUN = 8, 32
"""Runs of elements, and elements of each, in which tensors that are equal have to be equal before they are read whole."""


def leaders(base: Checkpoint, finetuned: Checkpoint, partners: Mapping[str, str], workers: int) -> dict[str, str]:
    """Return for each weight that equals another one, bit for bit in base and in fine-tune, the one whose plan it takes: a head first.

    Reads a few elements of each of several matrices of one shape, and all of those that are equal.

    Args:
        base: The base checkpoint.
        finetuned: The fine-tuned checkpoint.
        partners: Names in the base by names in the fine-tune.
        workers: Threads.
    """
    heads, out = heads_of(finetuned.tensors), dict[str, str]()
    for names in _seeming(base, finetuned, partners):
        first = list[str]()  # one of each kind
        for name in sorted(names, key=lambda name: (name not in heads, name.encode())):
            found = next((other for other in first if _equal(base, finetuned, partners, name, other, workers)), None)
            if found is None:
                first.append(name)
            else:
                out[name] = found
    return out


def _seeming(base: Checkpoint, finetuned: Checkpoint, partners: Mapping[str, str]) -> list[list[str]]:
    """Return groups of matrices that may be equal: of one type and one shape on both sides, and equal in a few elements."""
    shapes = dict[object, list[str]]()
    for name, tensor in finetuned.tensors.items():
        partner = base.tensors.get(partners.get(name, ""))
        if partner is not None and len(tensor.shape) > 1 and tensor.dtype.is_delta and partner.dtype.is_delta and tensor.numel:
            shapes.setdefault((tensor.dtype, tensor.shape, partner.dtype, partner.shape), []).append(name)
    groups = dict[object, list[str]]()
    for shape, names in shapes.items():
        for name in names if len(names) > 1 else ():
            groups.setdefault((shape, _few_of(finetuned, name)), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _few_of(checkpoint: Checkpoint, name: str) -> bytes:
    numel = checkpoint.tensors[name].numel
    starts = sorted({run * max(0, numel - _RUN) // (_RUNS - 1) for run in range(_RUNS)})
    return b"".join(checkpoint.read(name, start, min(start + _RUN, numel)).tobytes() for start in starts)


def _equal(base: Checkpoint, finetuned: Checkpoint, partners: Mapping[str, str], one: str, other: str, workers: int) -> bool:
    """Whether two tensors of one type and shape are equal on both sides; reads until they are not."""
    sides = ((base, partners[one], partners[other]), (finetuned, one, other))

    def equal(task: tuple[int, int]) -> bool:
        side, start = task
        checkpoint, *names = sides[side]
        stop = min(start + CHUNK, checkpoint.tensors[names[0]].numel)
        return same_bits(*(checkpoint.read(name, start, stop) for name in names))

    tasks = ((side, start) for side, (checkpoint, name, _) in enumerate(sides) for start in range(0, checkpoint.tensors[name].numel, CHUNK))
    with closing(ordered_map(equal, tasks, workers)) as results:
        return all(results)


def survey_alike(
    base: Checkpoint, finetuned: Checkpoint, plans: Sequence[DeltaPlan], workers: int, done: Callable[[DeltaPlan], None] = lambda _: None
) -> dict[str, Surveyed]:
    """Do as `survey_weights`, whose arguments these are, and look at weights that are equal once."""
    names = {plan.tensor.name for plan in plans}
    own = [plan for plan in plans if plan.like not in names]
    found = survey_weights(base, finetuned, own, workers, done)
    for plan in plans:
        if plan.like in names:
            first = found[plan.like]
            found[plan.tensor.name] = replace(first, plan=plan, known=replace(first.known, name=plan.tensor.name))
            done(plan)
    return {plan.tensor.name: found[plan.tensor.name] for plan in plans}
