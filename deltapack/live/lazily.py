"""The tensors of base + packs one by one, each made when it is asked for: what a host loads that takes them as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import read_side_file
from deltapack.composing.chain import in_order, open_links, restored_from
from deltapack.composing.compose import Composition, compose
from deltapack.composing.heads import CONFIG
from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.device.regions import region_of
from deltapack.errors import RecipeError, UnsupportedError
from deltapack.live.rooms import TensorSink, room_for, unheard
from deltapack.live.weights import Packs, weights_of
from deltapack.parallel import resolve_workers
from deltapack.restoring.engine import restore_tensors
from deltapack.restoring.provenance import merged, restored

__all__ = ["LazyTensors", "open_lazily"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LazyTensors:
    """The checkpoint that packs restore, whose headers were compared and of which nothing was read yet.

    Attributes:
        jobs: What to make, by name; a tied tensor stands under each of its names.
        metadata: Where the tensors are from, as restored files say.
    """

    jobs: Mapping[str, TensorJob]
    metadata: Mapping[str, str]
    _base: Checkpoint
    _composition: Composition
    _workers: int

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in the type and shape that the restored checkpoint has, its digests compared.

        Raises:
            BaseMismatchError: The base has another tensor of that name than the pack was made from.
            FormatError: The pack is damaged.
            UnsupportedError: torch has no such type.
        """
        job = self.jobs[name]
        made = room_for(job, _CPU)
        sink = TensorSink({job.name: region_of(made, job.dtype.torch_shape(job.shape))})
        # Threads for a small tensor would cost more than it does.
        workers = self._workers if job.chunks > 1 else 1
        with closing(restore_tensors(self._base, [job], sink, verify=True, workers=workers, progress=unheard)) as done:
            for _ in done:
                pass
        return made

    def config(self) -> Mapping[str, Any]:
        """Return the config.json of the restored checkpoint; empty where it has none that is an object of JSON.

        Raises:
            BaseMismatchError: The base lacks what it refers to.
            FormatError: It is damaged in the pack.
        """
        data = read_side_file(self._base, self._composition.assets, CONFIG)
        try:
            found = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def open_lazily(base: str | Path, packs: Packs, *, workers: int | None = None, chain: bool = False) -> Iterator[LazyTensors]:
    """Compare a base with packs, by what their headers say, and plan the tensors; they can be made as long as this is open.

    Args:
        base: What `deltapack.checkpoint.open_checkpoint` reads.
        packs: Weights of packs, in order of addition, with the bits that `merge` gives; or packs of weight 1, or one.
        workers: Threads; every core unless given.
        chain: Whether the packs follow one another, in any order, and what the last one gives is wanted.

    Raises:
        BaseMismatchError: This is not the base of the packs, or they are no chain.
        CheckpointError: The base is damaged, or none.
        FormatError: A pack is damaged, or none.
        MergeConflictError: Packs disagree on what cannot be added.
        RecipeError: An argument is out of range, there is no pack, or one of a chain has a weight.
        UnsupportedError: The result has weights in sub-folders.
    """
    threads, weights = resolve_workers(workers), weights_of(packs)
    if not weights:
        raise RecipeError("nothing to load", expected="at least one pack")
    if chain and set(weights.values()) != {1.0}:
        hint = "Each pack of a chain follows what the one before gives in full; leave the weights out."
        raise RecipeError(
            "a pack of a chain has a weight", found=", ".join(f"{path} {weight:g}" for path, weight in weights.items()), hint=hint
        )
    with open_checkpoint(base) as checkpoint, open_links(list(weights)) as opened:
        *before, last = in_order(opened) if chain else [opened[0]]
        readers = [last] if chain else opened
        weighted = [WeightedPack(reader, weights[reader.path]) for reader in readers]
        seen = arranged_base(restored_from(checkpoint, before), readers)
        composition = compose(seen, weighted)
        if composition.folders:
            hint = "Restore a folder with `deltapack apply`, and load that with the library that it is for."
            found = ", ".join(composition.folders)
            raise UnsupportedError("the pack restores several folders, not one model", path=readers[0].path, found=found, hint=hint)
        jobs = {job.name: job for job in composition.jobs}
        jobs |= {name: jobs[kept] for name, kept in composition.aliases.items()}
        metadata = merged(weighted) if len(weighted) > 1 else restored(weighted[0], composition, verify=True)
        yield LazyTensors(jobs, metadata, seen, composition, threads)
