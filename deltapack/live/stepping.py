"""A live model along a chain of packs: what a step has to follow, and what undoes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltapack.composing.chain import short
from deltapack.device.work import Saved
from deltapack.errors import BaseMismatchError, RecipeError
from deltapack.format.reader import PackReader
from deltapack.live.planning import Active

__all__ = ["Step", "check_follows", "refuse_active", "refuse_steps", "run_step"]


@dataclass(frozen=True)
class Step:
    """A step that a model has taken.

    Attributes:
        pack: Where the pack is.
        reader: The pack.
        saved: What undoes it.
        roots: Root digests of the tensors before it, by name; None where nobody had asked.
    """

    pack: Path
    reader: PackReader
    saved: Sequence[Saved]
    roots: Mapping[str, str | None]

    def restore(self, roots: MutableMapping[str, str]) -> None:
        """Bring back what was known of the tensors before."""
        for name, root in self.roots.items():
            if root is None:
                roots.pop(name, None)
            else:
                roots[name] = root


def check_follows(pack: PackReader, steps: Sequence[Step]) -> None:
    """Require that a pack is made from what the last step restores; of the first one, digests tell.

    Raises:
        BaseMismatchError: It is not.
    """
    if not steps:
        return
    last = steps[-1].reader
    gives, wanted = last.index.result_fingerprint, pack.index.base_fingerprint
    if gives != wanted:
        raise BaseMismatchError(
            "the pack does not follow what the model holds",
            path=pack.path,
            expected=f"a pack made from {short(gives)}, which {last.path} gives",
            found=f"one made from {short(wanted)}",
            hint="back() undoes a step; `deltapack log DIR` shows which pack follows which.",
        )


def refuse_active(path: Path, active: Active) -> None:
    """Refuse a step where packs are active.

    Raises:
        RecipeError: There are some.
    """
    if active.packs:
        hint = "Call deactivate() first: a chain begins at the base."
        raise RecipeError("packs are active, and a step is made from the base or another step", path=path, hint=hint)


def refuse_steps(steps: Sequence[Step]) -> None:
    """Refuse to activate packs where steps were taken.

    Raises:
        RecipeError: There are some.
    """
    if steps:
        hint = "Call deactivate() first, which brings the base back."
        raise RecipeError("the model has taken steps of a chain, and packs are added to the base", path=steps[-1].pack, hint=hint)


def run_step(run: Callable[[list[Saved]], None]) -> Sequence[Saved]:
    """Do a step and return what undoes it; after an error all is as it was."""
    done: list[Saved] = []
    try:
        run(done)
    except BaseException:
        for saved in reversed(done):
            saved.put_back()
        raise
    return done
