"""What a serving engine is asked for, as JSON has it: packs with weights, or a chain; and the tensors that this gives, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltapack.checking import as_items, as_number
from deltapack.checkpoint import Checkpoint, open_checkpoint
from deltapack.composing.tensor_job import TensorJob
from deltapack.errors import RecipeError, UnsupportedError, did_you_mean
from deltapack.live.lazily import open_lazily
from deltapack.live.weights import Packs, weights_of

__all__ = ["KEYS", "Wanted", "loaded_names", "restored_weights"]

KEYS = ("packs", "chain")
"""What may be asked for, one of them at a time."""


@dataclass(frozen=True)
class Wanted:
    """Packs to be active.

    Attributes:
        packs: Their weights, in order; of a chain all are 1. None for the base.
        chain: Whether each follows another one.
    """

    packs: Mapping[Path, float]
    chain: bool = False

    @classmethod
    def parse(cls, value: Mapping[str, Any], what: str) -> Wanted:
        """Read `{"packs": ...}` or `{"chain": [...]}`.

        Packs are a path, a list of paths, a list of `{"path": ..., "weight": ...}`, or an object of weights by path.

        Args:
            value: What was given.
            what: What it was given as, for messages.

        Raises:
            RecipeError: A key is unknown, both are given, or a value is none of these.
        """
        unknown = [key for key in value if key not in KEYS]
        if unknown:
            hint = did_you_mean(unknown[0], KEYS)
            raise RecipeError(f"{what} has an unknown key", expected=" or ".join(KEYS), found=repr(unknown[0])[:60], hint=hint)
        if len(value) > 1:
            raise RecipeError(f"{what} has packs and a chain", expected="one of them", hint="`deltapack squash` makes one pack of a chain.")
        chain = "chain" in value
        return cls(weights_of(_packs(value.get("chain" if chain else "packs", ()), what)), chain)


def _packs(value: Any, what: str) -> Packs:
    """Return packs as everything else takes them."""
    if isinstance(value, str | Path | Mapping):
        return value
    items = as_items(f"the packs of {what}", value, "packs")
    out: dict[str, float] = {}
    for item in items:
        row = item if isinstance(item, Mapping) else {"path": item}
        if not isinstance(row.get("path"), str | Path) or row.keys() - {"path", "weight"}:
            raise RecipeError(f"a pack of {what} is none", expected='{"path": "math.dpk", "weight": 1.0}', found=repr(item)[:60])
        path = str(row["path"])
        if path in out:
            raise RecipeError("a pack is given twice", path=path, hint="Give it once, with the sum of the weights.")
        out[path] = as_number("weight", row.get("weight", 1.0), path=Path(path))
    return out


def loaded_names(base: Checkpoint) -> list[str]:
    """Return the names that stand in the files of a checkpoint: a safetensors file holds a tied tensor once, a state dict twice."""
    single = all(path.suffix.lower() == ".safetensors" for path in base.weight_paths())
    return sorted(base.tensors) if single else sorted({*base.tensors, *base.aliases})


def restored_weights(
    base: str | Path, wanted: Wanted, *, skip: Callable[[str], bool] = lambda name: False, workers: int | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and tensors of base + packs, as loading the applied checkpoint would; each is made when it is asked for.

    Args:
        base: The base.
        wanted: What is wanted; without packs, the base itself.
        skip: Whether a tensor is not wanted here.
        workers: Threads; every core unless given.

    Yields:
        A name, and a tensor on the CPU in its own type, its digests compared.

    Raises:
        DeltapackError: As `open_lazily`.
        UnsupportedError: The packs give a tensor another shape than the base has, which the server's own config does not know.
    """
    with open_checkpoint(base) as checkpoint:
        names, shapes = loaded_names(checkpoint), {name: info.shape for name, info in checkpoint.tensors.items()}
        own = {name: checkpoint.aliases.get(name, name) for name in names}
        if not wanted.packs:
            yield from ((name, _of_base(checkpoint, own[name])) for name in names if not skip(name))
            return
    with open_lazily(base, dict(wanted.packs), chain=wanted.chain, workers=workers) as lazy:
        for name, job in lazy.jobs.items():
            _check_shape(name, job, shapes.get(own.get(name, name)))
        for name, job in lazy.jobs.items():
            if (name == job.name or name in own) and not skip(name):
                yield name, lazy.tensor(name)


def _check_shape(name: str, job: TensorJob, shape: tuple[int, ...] | None) -> None:
    if shape is not None and shape != job.shape:
        hint = "The server has the base's config: restore a folder with `deltapack apply`, and serve that."
        what = "the pack gives the tensor another shape than the base's config says"
        raise UnsupportedError(what, path=job.pack, tensor=name, expected=list(shape), found=list(job.shape), hint=hint)


def _of_base(base: Checkpoint, name: str) -> torch.Tensor:
    """Return a tensor of a checkpoint."""
    info = base.tensors[name]
    dtype = getattr(torch, info.dtype.torch, None) if info.dtype.torch else None
    if dtype is None:
        raise UnsupportedError("this torch has no such element type", path=base.path, tensor=name, found=info.dtype.safetensors)
    elements = torch.from_numpy(base.read(name).view("|u1"))
    return elements.view(dtype).reshape(info.dtype.torch_shape(info.shape))
