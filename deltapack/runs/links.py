"""What a folder of packs says of itself: which steps it has, and from which packs each of them is restored.

There is no journal: a pack is named after its step and follows the newest earlier one that gives the checkpoint that it was made from.
A pack that follows none was made from the base: an anchor. So packs can be copied, moved and removed by hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltapack.composing.chain import STEP_NAME
from deltapack.errors import BaseMismatchError, NotAPackError, OutputError, RecipeError
from deltapack.format.digest import NOTHING
from deltapack.format.reader import PackReader

__all__ = ["LAST_STEP", "Link", "Run", "check_root", "pack_name", "read_run"]

LAST_STEP = 10**15 - 1
"""Names of packs have fifteen digits at most: a pack of a later step would be none of the run."""


def pack_name(step: int) -> str:
    """Return the name of a step's pack; names sort as steps do.

    >>> pack_name(100)
    'step-00000100.dpk'
    """
    return f"step-{step:08d}.dpk"


@dataclass(frozen=True)
class Link:
    """The pack of a step.

    Attributes:
        step: The step.
        path: The file.
        base: Fingerprint of the checkpoint that it was made from.
        result: Fingerprint of the checkpoint that it restores.
        size: Its bytes.
    """

    step: int
    path: Path
    base: str
    result: str
    size: int


@dataclass(frozen=True)
class Run:
    """The packs of a run.

    Attributes:
        folder: Where they are.
        links: The packs, in the order of their steps.
    """

    folder: Path
    links: tuple[Link, ...]

    @cached_property
    def _followed(self) -> Mapping[int, Link | None]:
        """From step to the pack that the step's own follows; None for an anchor."""
        by_result: dict[str, Link] = {}
        followed: dict[int, Link | None] = {}
        roots: dict[int, str] = {}
        for link in self.links:
            before = by_result.get(link.base)
            if before is not None and roots[before.step] == link.base:
                before = None  # a step that changed nothing gives the base itself: what follows was made from the base
            followed[link.step], roots[link.step] = before, link.base if before is None else roots[before.step]
            by_result[link.result] = link
        return followed

    def of(self, step: int) -> Link:
        """Return the pack of a step.

        Raises:
            RecipeError: There is none.
        """
        found = next((link for link in self.links if link.step == step), None)
        if found is None:
            raise RecipeError(f"no pack of step {step}", path=self.folder, **self._steps())
        return found

    def _steps(self) -> dict[str, str]:
        """Say which steps there are to one who asked for another one."""
        if self.links:
            newest = ", ".join(str(link.step) for link in self.links[-8:])
            return {"expected": f"one of {'..., ' * (len(self.links) > 8)}{newest}"}
        found = "none of any step" if self.folder.exists() else "no such folder"
        return {"expected": f"packs such as {pack_name(100)}", "found": found}

    def before(self, step: int) -> Link | None:
        """Return the newest pack of an earlier step; none where there is none."""
        return next((link for link in reversed(self.links) if link.step < step), None)

    def chain(self, link: Link) -> tuple[Link, ...]:
        """Return the packs that restore a step, from the anchor to its own."""
        found = [link]
        while (before := self._followed[found[-1].step]) is not None:
            found.append(before)
        return tuple(reversed(found))

    def newest(self, count: int) -> tuple[Link, ...]:
        """Return the packs of the newest steps, and those that they need."""
        needed = {one.step for link in self.links[len(self.links) - min(count, len(self.links)) :] for one in self.chain(link)}
        return tuple(link for link in self.links if link.step in needed)


def read_run(folder: Path, known: Run | None = None) -> Run:
    """Read which packs a folder has; of each only its index. A folder that does not exist has none.

    Args:
        folder: The folder.
        known: What was read there before: a pack of the same name and size is not read again.

    Raises:
        FormatError: A pack is damaged.
        OutputError: The folder cannot be listed.
        RecipeError: Two packs are of one step.
    """
    before = {(link.path, link.size): link for link in (known.links if known is not None else ())}
    links: dict[int, Link] = {}
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
        for path in paths:
            match = STEP_NAME.fullmatch(path.name)
            if match is None:
                continue
            step = int(match[1])
            if step in links:
                raise RecipeError("two packs of one step", path=path, found=links[step].path.name, hint="Move one of them elsewhere.")
            try:
                links[step] = before.get((path, path.stat().st_size)) or _read(step, path)
            except (FileNotFoundError, NotAPackError):
                if os.path.lexists(path):
                    raise
                # Somebody removed it between the listing and now: it is not there, then.
    except OSError as error:
        raise OutputError(f"cannot read the folder of packs: {error.strerror or error}", path=folder) from error
    return Run(folder, tuple(links[step] for step in sorted(links)))


def _read(step: int, path: Path) -> Link:
    with PackReader(path) as reader:
        return Link(step, path, reader.index.base_fingerprint, reader.index.result_fingerprint, reader.file_bytes)


def check_root(chain: tuple[Link, ...], has_base: bool) -> None:
    """Require a base where a chain starts from one.

    Raises:
        BaseMismatchError: The chain starts from a base and none was given, or the other way round.
    """
    if (chain[0].base == NOTHING) == has_base:
        what, given = ("nothing", "a base was given") if has_base else ("a base", "none was given")
        hint = (
            "Leave out the base."
            if has_base
            else "Name the base that the run was packed with; where there was none, a pack before this one is missing."
        )
        raise BaseMismatchError(f"the packs of this run start from {what}, and {given}", path=chain[0].path, hint=hint)
