"""Runs that have lost a pack: what follows the gap cannot be restored, and what is saved next does not build on it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from deltapack.errors import BaseMismatchError
from deltapack.format.digest import NOTHING
from deltapack.runs.comparing import fingerprint_of
from deltapack.runs.finding import Signature, signature_of
from deltapack.runs.links import Link, Run, check_root

__all__ = ["gap_before", "missing_told"]


def gap_before(run: Run, chain: Sequence[Link], base: Path | None, workers: int | None) -> str | None:
    """Say that a chain starts from neither the base nor another pack, so that nothing can follow it; none where all is well.

    Args:
        run: The run.
        chain: The packs that a new one would follow.
        base: What the run started from. All of it is read, once while it stays what it is.
        workers: Threads.

    Raises:
        BaseMismatchError: The run started from nothing, and there is a base, or the other way round; or several anchors of it agree that
            it started from another one.
        CheckpointError: The base is damaged.
    """
    root, starts = chain[0], Counter(link.base for link in run.links if len(run.chain(link)) == 1)
    if base is None and NOTHING in starts:
        found = NOTHING
    else:
        check_root(tuple(chain), base is not None)
        found = NOTHING if base is None else _fingerprint(base.absolute(), signature_of(base), workers)
    if root.base == found:
        return None
    most, times = starts.most_common(1)[0]
    if found not in starts and times > 1:
        anchor = next(link.path for link in run.links if link.base == most)
        raise BaseMismatchError("the run was packed with another base", path=anchor, expected=most, found=found)
    missing = "a pack of the run is missing, or it was packed with another base"
    return (
        f"{root.path} follows a checkpoint that neither a pack of the run nor the base gives: {missing}; this step was made from the base"
    )


@lru_cache(maxsize=4)
def _fingerprint(base: Path, signature: Signature | None, workers: int | None) -> str:
    """Return the fingerprint of a base; it is the same as long as the files are."""
    return fingerprint_of(base, workers)


@contextlib.contextmanager
def missing_told(chain: Sequence[Link]) -> Iterator[None]:
    """Name the pack that a chain starts with where the base is not what it was made from: the packs before it may be missing.

    Raises:
        BaseMismatchError: That is so.
    """
    try:
        yield
    except BaseMismatchError as error:
        what = f"it follows a checkpoint that neither a pack of the run nor the base gives: {error.what}"
        hint = "A pack of the run is missing, or this is another base."
        raise BaseMismatchError(what, path=chain[0].path, expected=error.expected, found=error.found, hint=hint) from error
