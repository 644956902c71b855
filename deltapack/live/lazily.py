"""The tensors of base + pack one by one, each made when it is asked for: what a host loads that takes them as they come."""

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
from deltapack.composing.compose import Composition, compose
from deltapack.composing.heads import CONFIG
from deltapack.composing.tensor_job import TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.device.regions import region_of
from deltapack.errors import UnsupportedError
from deltapack.format.reader import PackReader
from deltapack.live.rooms import TensorSink, room_for, unheard
from deltapack.parallel import resolve_workers
from deltapack.restoring.engine import restore_tensors
from deltapack.restoring.provenance import restored

__all__ = ["LazyTensors", "open_lazily"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LazyTensors:
    """The checkpoint that a pack restores, whose headers were compared and of which nothing was read yet.

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
def open_lazily(base: str | Path, pack: str | Path, *, workers: int | None = None) -> Iterator[LazyTensors]:
    """Compare a base with a pack, by what their headers say, and plan the tensors; they can be made as long as this is open.

    Args:
        base: What `deltapack.checkpoint.open_checkpoint` reads.
        pack: The pack.
        workers: Threads; every core unless given.

    Raises:
        BaseMismatchError: This is not the base of the pack.
        CheckpointError: The base is damaged, or none.
        FormatError: The pack is damaged, or none.
        RecipeError: An argument is out of range.
        UnsupportedError: The result has weights in sub-folders.
    """
    threads = resolve_workers(workers)
    with open_checkpoint(base) as checkpoint, PackReader(pack) as reader:
        weighted, seen = WeightedPack(reader), arranged_base(checkpoint, [reader])
        composition = compose(seen, [weighted])
        if composition.folders:
            hint = "Restore a folder with `deltapack apply`, and load that with the library that it is for."
            found = ", ".join(composition.folders)
            raise UnsupportedError("the pack restores several folders, not one model", path=reader.path, found=found, hint=hint)
        jobs = {job.name: job for job in composition.jobs}
        jobs |= {name: jobs[kept] for name, kept in composition.aliases.items()}
        yield LazyTensors(jobs, restored(weighted, composition, verify=True), seen, composition, threads)
