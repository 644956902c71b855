"""A pack with other factors: its blobs are copied, and what depends on the result's bits is computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deltapack._version import __version__
from deltapack.checkpoint import Checkpoint
from deltapack.composing.arranged import arranged_base
from deltapack.composing.compose import compose
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import RecipeError
from deltapack.format.digest import fingerprint
from deltapack.format.index import Entry, Index, Term
from deltapack.format.reader import PackReader
from deltapack.format.writer import open_pack_writer
from deltapack.reports import Progress
from deltapack.restoring.engine import Nowhere, restore_tensors

__all__ = ["Retuned", "digests_of", "is_tunable", "retuned_entries", "write_retuned"]

Multiplier = Callable[[Entry], float]
"""Returns what the tunable factors of an entry are multiplied with."""


@dataclass(frozen=True)
class Retuned:
    """What a tensor becomes: the chunk digests of its base and of the result, and the root digest of the result."""

    base: tuple[bytes, ...]
    result: tuple[bytes, ...]
    root: str


def is_tunable(term: Term, *, factors: bool) -> bool:
    """Whether a term's factor may be tuned: one from which elements were dropped, and with `factors` one of two factors, too."""
    return term.index_codec.kept != "all" or (factors and term.values == "factors")


def retuned_entries(index: Index, multiplier: Multiplier, *, factors: bool) -> tuple[Entry, ...]:
    """Return the entries with other factors, in order; their digests are still those of before.

    Raises:
        RecipeError: A factor is no finite f32 any more.
    """
    return tuple(_retuned(entry, multiplier, factors) for entry in index.entries)


def _retuned(entry: Entry, multiplier: Multiplier, factors: bool) -> Entry:
    if not any(is_tunable(term, factors=factors) for term in entry.terms):
        return entry
    by = multiplier(entry)
    terms = [_scaled(entry, term, by) if is_tunable(term, factors=factors) else term for term in entry.terms]
    return replace(entry, terms=tuple(terms))


def _scaled(entry: Entry, term: Term, by: float) -> Term:
    with np.errstate(over="ignore"):
        factor = np.float32(term.factor * by)
    if not np.isfinite(factor):
        raise RecipeError(
            "the tuned factor is not a finite f32", tensor=entry.name, expected="a product below 3.4e38", found=term.factor * by
        )
    return replace(term, factor=float(factor))


def write_retuned(
    reader: PackReader,
    entries: tuple[Entry, ...],
    out: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    digests: Mapping[str, Retuned] | None = None,
    force: bool = False,
) -> int:
    """Write the pack with these entries and return its size. Every blob keeps its place: no length changes.

    Args:
        reader: The pack.
        entries: What `retuned_entries` returned.
        out: The new pack.
        recipe: What it says of how it was made; as before unless given.
        digests: By name, of the tensors whose bits change. Without, those of before stay: a draft, for packs that are only tried.
        force: Whether to replace an existing `out`.

    Raises:
        FormatError: A blob cannot be read.
        OutputError: `out` exists or cannot be written.
    """
    found = digests or {}
    entries = tuple(replace(entry, digest=found[entry.name].root) if entry.name in found else entry for entry in entries)
    anew = {entry.digests.offset: _digest_blob(entry, found[entry.name]) for entry in entries if entry.digests and entry.name in found}
    with open_pack_writer(out, force=force, inputs=[reader.path]) as writer:
        placed = {}
        for blob in reader.index.blobs:
            data = anew.get(blob.offset)
            placed[blob.offset] = writer.copy_blob(reader, blob) if data is None else writer.plain_blob(data)
        entries = tuple(replace(entry, digests=placed[entry.digests.offset]) if entry.digests else entry for entry in entries)
        result = [(entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in entries if entry.in_result]
        index = replace(
            reader.index,
            entries=entries,
            result_fingerprint=fingerprint(result),
            recipe=reader.index.recipe if recipe is None else recipe,
            created_by=f"deltapack {__version__}",
        )
        return writer.finish(index)


def _digest_blob(entry: Entry, digests: Retuned) -> bytes:
    return b"".join([*(digests.base if entry.base is not None else ()), *digests.result])


def digests_of(base: Checkpoint, draft: PackReader, before: Index, *, workers: int, progress: Progress | None = None) -> dict[str, Retuned]:
    """Restore what a draft changes, nowhere, and return the digests by name; the rest of the result is as it was.

    Args:
        base: The base.
        draft: The pack with new factors and old digests.
        before: The index of the pack that it was made of.
        workers: Threads.
        progress: Called with bytes of these tensors done so far and in all.

    Raises:
        BaseMismatchError: This is not the base of the pack.
        FormatError: The pack is damaged.
    """
    old = {entry.name: entry.terms for entry in before.entries}
    changed = {entry.name for entry in draft.index.entries if entry.terms != old[entry.name]}
    seen = arranged_base(base, [draft])
    jobs = [replace(job, digest="") for job in compose(seen, [WeightedPack(draft)]).jobs if job.name in changed]
    told = progress or (lambda done, total: None)
    restored = restore_tensors(seen, jobs, Nowhere(), verify=True, digests=True, workers=workers, progress=told)
    with closing(restored) as tensors:
        return {tensor.job.name: Retuned(tensor.base_digests, tensor.digests, tensor.root) for tensor in tensors}
