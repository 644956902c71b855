"""The two checkpoints of a compression, opened, matched and looked at: what packing and its preview both begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltapack import kernels
from deltapack.adapters import adapter_folder, open_adapted
from deltapack.checking import as_checkpoint, as_count, as_items, as_pair, as_path, as_paths, as_text
from deltapack.checkpoint import Checkpoint, LeftOut, NameMatch, SideFile, config_of, match_names, model_names, open_checkpoint
from deltapack.checkpoint.rivals import check_chosen
from deltapack.composing.basecheck import wrong_base
from deltapack.composing.chain import in_order, open_links, restored_from
from deltapack.composing.restored import RestoredCheckpoint
from deltapack.errors import RecipeError
from deltapack.packing.alike import leaders
from deltapack.packing.planning import DeltaPlan, PackPlan, identity_of, plan_tensor
from deltapack.packing.proposing import propose_arrangements
from deltapack.packing.recipe import Recipe
from deltapack.packing.sides import list_sides, missed
from deltapack.packing.surveying import Survey, survey_inputs

__all__ = ["Asked", "Inputs", "match_inputs", "open_inputs"]


@dataclass(frozen=True)
class Asked:
    """What a compression is asked for, besides its files; see `deltapack.compress`.

    Raises:
        RecipeError: Something is of another type.
    """

    recipe: Recipe
    name_map: Sequence[tuple[str, str]] = ()
    include_code: bool = False
    keep_base: str | None = None
    allow_unrelated: bool = False
    weight_files: str | None = None
    max_side_file: int | str | None = None
    leave_out: Sequence[str] = ()
    base_packs: Sequence[str | Path] = ()
    follow_links: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            raise RecipeError("recipe is not a Recipe", expected="such as deltapack.Recipe(drop_rate=0.5)", found=repr(self.recipe)[:60])
        pairs = as_items("name_map", self.name_map, "pairs of regular expression and replacement")
        object.__setattr__(self, "name_map", tuple(as_pair(f"name_map[{number}]", pair) for number, pair in enumerate(pairs)))
        patterns = as_items("leave_out", self.leave_out, "shell patterns")
        object.__setattr__(self, "leave_out", tuple(as_text(f"leave_out[{number}]", text) for number, text in enumerate(patterns)))
        object.__setattr__(self, "base_packs", as_paths("base_packs", self.base_packs))
        for what in ("keep_base", "weight_files"):
            if getattr(self, what) is not None:
                as_text(what, getattr(self, what))
        if self.max_side_file is not None and not isinstance(self.max_side_file, str):
            as_count("max_side_file", self.max_side_file, 'a number of bytes, or text such as "200MB"')


@dataclass(frozen=True)
class Inputs:
    """Base and fine-tune, and what is known of them before a tensor is read whole.

    Attributes:
        base: The base, with the tensors that the fine-tune has in another layout; `base.files` is what its files hold.
        finetuned: The fine-tune.
        asked: What is to be done with them.
        match: Which name of the one belongs to which of the other.
        survey: Roles, warnings and notes.
        files: Side files of the fine-tune that travel.
        left_out: Its files that do not.
    """

    base: Checkpoint
    finetuned: Checkpoint
    asked: Asked
    match: NameMatch
    survey: Survey
    files: Sequence[SideFile] = ()
    left_out: Sequence[LeftOut] = ()

    def plans(self, workers: int) -> Iterator[PackPlan]:
        """Plan the tensors of the fine-tune, one after the other, in the order of a pack; those that are equal have one plan."""
        identity, partners, recipe, roles = identity_of(self.finetuned), self.partners(), self.asked.recipe, self.survey.roles
        first = {} if recipe.exact is True else leaders(self.base, self.finetuned, partners, workers)

        def plan_of(name: str) -> PackPlan:
            return plan_tensor(self.base, self.finetuned, partners.get(name), name, roles[name], recipe, identity, workers)

        shared = {name: plan_of(name) for name in sorted(set(first.values()), key=str.encode)}
        for name in sorted(self.finetuned.tensors, key=str.encode):
            plan = shared.get(first.get(name, name))
            if plan is None or name in shared:
                yield plan or plan_of(name)
            elif isinstance(plan, DeltaPlan) and plan.recipe == recipe.for_tensor(name, roles[name]):
                yield plan.of(self.finetuned.tensors[name], self.base.tensors[partners[name]])
            else:
                yield plan_of(name)

    def only_base(self) -> list[str]:
        """Return the names of tensors in the base's files that are no partner, at most parts of one, in the order of a pack."""
        used = {name for name in self.partners().values() if self.base.tensors[name].arranged is None}
        return sorted(set(self.base.files.tensors) - used, key=str.encode)

    def partners(self) -> dict[str, str]:
        """Return base names by fine-tuned names, so that every base tensor can be accounted for.

        A base tensor that nothing uses is listed as removed, under its own name. If the fine-tune has that name for a tensor that
        was matched with another one, the match is given up and the tensor kept whole.
        """
        partners = dict(self.match.base_of)
        while True:
            used = set(partners.values())
            clash = [name for name in partners if name in self.base.tensors and name not in used]
            if not clash:
                return partners
            for name in clash:
                del partners[name]

    def check_base(self, name: str, digest: str) -> None:
        """Compare the digest of a tensor of the base's files with what the pack says that makes it, if one does.

        Raises:
            BaseMismatchError: It is another: the chain begins at another base.
        """
        base = self.base.files
        promised = base.promised.get(name) if isinstance(base, RestoredCheckpoint) else None
        if promised is not None and promised != digest:
            raise wrong_base(base.path, name, promised, f"digest {digest}", _other_chain(base))

    def check_finetuned(self, name: str, digest: str) -> None:
        """Compare the digest of a tensor that is packed exactly with what the last pack of a chain promises, if that gives it.

        Raises:
            BaseMismatchError: It is another: the chain begins at another base.
        """
        promised = self.finetuned.promised.get(name) if isinstance(self.finetuned, RestoredCheckpoint) else None
        if promised is not None and promised != digest:
            raise wrong_base(self.base.path, name, promised, f"digest {digest}", _other_chain(self.finetuned))

    def notes(self) -> list[str]:
        """Return what was noticed while they were opened, matched and looked at."""
        unread = [f"not read in the base: {error}" for error in self.base.unread]
        of_base, of_tuned = [f"base: {note}" for note in self.base.notes], [f"fine-tune: {note}" for note in self.finetuned.notes]
        return [*of_base, *unread, *of_tuned, *self.match.notes, *self.survey.notes]


def _other_chain(restored: Checkpoint) -> str:
    """Return what to do where packs do not start from the checkpoint that they are given with."""
    first = restored.packs[0].path if isinstance(restored, RestoredCheckpoint) else "the first pack"
    return f"{first} was made from another checkpoint: give the packs before it, too (`deltapack log` shows them), or its very base."


@contextlib.contextmanager
def open_inputs(base: str | Path, finetuned: str | Path, asked: Asked) -> Iterator[Inputs]:
    """Open, match and survey two checkpoints; a fine-tune that is an adapter is the base with it merged.

    Raises:
        BaseMismatchError: Most of the fine-tune has nothing to do with the base, or the packs of the base are no chain from it.
        CheckpointError: One is damaged or not a checkpoint.
        FormatError: A pack of the base is damaged.
        LimitError: A side file is too large, or there are too many packs.
        RecipeError: A setting does nothing.
        UnsupportedError: Quantised codes would be paired with weights, or the fine-tune has weights that are not read.
    """
    choice = asked.weight_files
    base, finetuned = as_checkpoint("base", base), as_checkpoint("finetuned", finetuned)
    with contextlib.ExitStack() as stack:
        adapter = adapter_folder(finetuned)
        base_ckpt = files = stack.enter_context(open_checkpoint(base, weights=choice, one_of_several=True))
        tuned_ckpt = files if adapter is not None else stack.enter_context(open_checkpoint(finetuned, weights=choice, one_of_several=True))
        check_chosen(choice, files, tuned_ckpt)
        links = stack.enter_context(open_links([as_path("base_packs", path) for path in asked.base_packs]))
        base_ckpt = restored_from(files, in_order(links))
        if adapter is not None:
            tuned_ckpt = stack.enter_context(open_adapted(base_ckpt, finetuned))
        times = (2 if asked.recipe.exact is True else 1) + len(links)  # the loops of exact packs gain twice as much by being compiled
        stack.enter_context(kernels.working_on(tuned_ckpt.tensors.values(), times))
        yield match_inputs(base_ckpt, tuned_ckpt, asked)


def match_inputs(base: Checkpoint, finetuned: Checkpoint, asked: Asked, *, known: bool = False) -> Inputs:
    """Match two checkpoints that are open, and survey them unless the one is known to be made of the other. Raises as `open_inputs`."""
    files, left_out = list_sides(finetuned, asked.include_code, asked.max_side_file, asked.leave_out, asked.follow_links)
    match = match_names(
        base.tensors,
        finetuned.tensors,
        asked.name_map,
        base_aliases=base.aliases,
        finetuned_aliases=finetuned.aliases,
        models=(*model_names(config_of(base)), *model_names(config_of(finetuned))),
    )
    seen, match = propose_arrangements(base, finetuned, match)
    if known:
        roles = dict.fromkeys(finetuned.tensors, "exact")
        return Inputs(seen, finetuned, asked, match, Survey(roles, roles), files, left_out)
    survey = survey_inputs(seen, finetuned, match, asked.recipe, allow_unrelated=asked.allow_unrelated, keep_base=asked.keep_base)
    survey = replace(survey, warnings=(*survey.warnings, *missed(left_out)))
    return Inputs(seen, finetuned, asked, match, survey, files, left_out)
