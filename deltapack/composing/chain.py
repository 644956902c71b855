"""Packs that follow one another: each was made from the checkpoint that the one before restores."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path

from deltapack.checking import as_pack, as_paths
from deltapack.checkpoint import Checkpoint
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.errors import BaseMismatchError, LimitError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["STEP_NAME", "in_order", "open_links", "paths_of", "restored_from", "short"]

STEP_NAME = re.compile(r"step-(\d{8,15})\.dpk")
"""What packs of a training run are called."""


def short(fingerprint: str) -> str:
    """Return as much of a fingerprint as people compare."""
    return fingerprint[:16]


def restored_from(base: Checkpoint, links: Sequence[PackReader], *, verify: bool = True) -> Checkpoint:
    """Return the checkpoint that a chain restores; the base itself where there are no packs. It is closed with the base.

    Args:
        base: The base of the first pack.
        links: The packs, as `in_order` returns them.
        verify: Whether what is read is compared with the digests of packs.

    Raises:
        BaseMismatchError: This is not the base, or a pack is not for what the one before restores.
        FormatError: A pack is damaged.
    """
    for link in links:
        base = RestoredCheckpoint(base, link, verify=verify)
    return base


def paths_of(pack: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the paths of a pack, or of those of a chain.

    Raises:
        RecipeError: They are no paths, or none.
    """
    if isinstance(pack, (str, PathLike)) or not isinstance(pack, Iterable):
        return [as_pack("the pack", pack)]
    paths = list(as_paths("pack", pack))
    if not paths:
        raise RecipeError("there is no pack", expected="a path, or a list of them")
    return paths


@contextlib.contextmanager
def open_links(paths: Sequence[Path]) -> Iterator[list[PackReader]]:
    """Open packs, as they are given.

    Raises:
        FormatError: One is damaged or no pack.
        LimitError: There are too many.
    """
    if len(paths) > DEFAULT_LIMITS.links:
        hint = "`deltapack squash` makes one pack of several."
        raise LimitError("too many packs in a chain", expected=f"at most {DEFAULT_LIMITS.links:,}", found=f"{len(paths):,}", hint=hint)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(PackReader(path)) for path in paths]


def in_order(packs: Sequence[PackReader]) -> list[PackReader]:
    """Return packs as a chain: in the order given, if they follow one another so, else in the only order in which they do.

    Raises:
        BaseMismatchError: One is missing, or two are of one base.
        RecipeError: They come back to a state that they have left, one is given twice, or nothing says their order.
    """
    chain = list(packs) if _follow(packs) else _sorted(packs)
    after = {chain[0].index.base_fingerprint: 0} if chain else {}
    for number, link in enumerate(chain, 1):
        state = link.index.result_fingerprint
        if not _stays(link) and state in after:
            hint = f"Leave out what comes to nothing, from {chain[after[state]].path} to {link.path}."
            raise RecipeError("the chain comes back to where it was", path=link.path, found=f"fingerprint {short(state)}", hint=hint)
        after[state] = number
    return chain


def _follow(packs: Sequence[PackReader]) -> bool:
    return all(one.index.result_fingerprint == two.index.base_fingerprint for one, two in pairwise(packs))


def _stays(pack: PackReader) -> bool:
    """Whether a pack changes no tensor, as one of a step of training that changed nothing."""
    return pack.index.base_fingerprint == pack.index.result_fingerprint


def _sorted(packs: Sequence[PackReader]) -> list[PackReader]:
    """Return packs in the order in which they follow one another.

    Raises:
        BaseMismatchError: There is no such order.
        RecipeError: Packs go in a circle, or one is given twice.
    """
    by_base: dict[str, PackReader] = {}
    for pack in packs:
        other = by_base.setdefault(pack.index.base_fingerprint, pack) if not _stays(pack) else pack
        if other is not pack:
            _refuse_fork(other, pack)
    results = {pack.index.result_fingerprint for pack in by_base.values()}
    starts = [pack for base, pack in by_base.items() if base not in results]
    pieces = [_walk(start, by_base) for start in starts]
    if len(pieces) > 1:
        raise _missing(pieces[0][-1], pieces[1][0])
    chain = pieces[0] if pieces else []
    if len(chain) < len(by_base):
        lost = next(pack for pack in by_base.values() if pack not in chain)
        hint = "Each of them follows another one: leave out the one that is not wanted."
        raise RecipeError("packs follow one another in a circle", path=lost.path, hint=hint)
    return _with_idle(chain, [pack for pack in packs if _stays(pack)])


def _walk(start: PackReader, by_base: dict[str, PackReader]) -> list[PackReader]:
    """Return a pack and those that follow it."""
    chain, states = [start], {start.index.base_fingerprint}
    while (following := by_base.get(chain[-1].index.result_fingerprint)) is not None and chain[-1].index.result_fingerprint not in states:
        states.add(following.index.base_fingerprint)
        chain.append(following)
    return chain


def _with_idle(chain: list[PackReader], idle: Sequence[PackReader]) -> list[PackReader]:
    """Return a chain with packs that change no tensor where they belong.

    Raises:
        BaseMismatchError: One belongs nowhere.
        RecipeError: Several belong to one place, and the files that they give say that their order matters.
    """
    first: dict[str, PackReader] = {}
    for pack in idle:
        state = pack.index.base_fingerprint
        other = first.setdefault(state, pack)
        if _files(other) != _files(pack):
            hint = "Give all packs of the chain in the order in which they were made."
            raise RecipeError("two packs change files alone, and nothing says which is first", path=pack.path, found=other.path, hint=hint)
        after = [number for number, link in enumerate(chain, 1) if link.index.result_fingerprint == state]
        if not chain or after:
            chain.insert(after[-1] if after else 0, pack)
        elif chain[0].index.base_fingerprint == state:
            chain.insert(0, pack)
        else:
            raise _missing(chain[-1], pack)
    return chain


def _files(pack: PackReader) -> list[tuple[str, str]] | None:
    """Return the files that a pack gives beside elements, by name and SHA-256; none where it says nothing of them."""
    index = pack.index
    if index.files is None and not index.containers:
        return None
    return [(file.name, file.sha256) for file in (*(index.files or ()), *index.containers)]


def _refuse_fork(one: PackReader, two: PackReader) -> None:
    """Refuse two packs that follow the same checkpoint.

    Raises:
        BaseMismatchError: They are two.
        RecipeError: They are one, given twice.
    """
    if one.pack_id == two.pack_id:
        raise RecipeError("a pack of the chain is given twice", path=two.path, found=str(one.path))
    raise BaseMismatchError(
        "two packs follow the same checkpoint, so that they are no chain",
        path=two.path,
        expected=f"one that follows {short(one.index.result_fingerprint)}, which {one.path} gives",
        found=f"the base of {one.path}, {short(two.index.base_fingerprint)}",
        hint=_fork_hint(one, two),
    )


def _fork_hint(one: PackReader, two: PackReader) -> str:
    """Say what becomes of two packs of one base: steps and other exact packs are not there to be added."""
    if all(STEP_NAME.fullmatch(pack.path.name) for pack in (one, two)):
        return "Chains of a run begin anew at each anchor: `deltapack apply BASE DIR --step N` takes the packs of one step."
    if one.index.is_exact and two.index.is_exact:
        return "Name the packs of one chain: `deltapack log` shows which pack follows which."
    return "Packs of one base are no chain: `deltapack merge` adds them."


def _missing(before: PackReader, after: PackReader) -> BaseMismatchError:
    """Return the error for two packs with a gap between them."""
    gives, wanted = short(before.index.result_fingerprint), short(after.index.base_fingerprint)
    return BaseMismatchError(
        f"{after.path.name} follows the checkpoint with fingerprint {wanted}; {before.path.name} gives {gives}; "
        f"missing: a pack from {gives} to {wanted}",
        path=after.path,
        hint="`deltapack log DIR` shows which pack follows which.",
    )
