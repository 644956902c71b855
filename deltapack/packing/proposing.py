"""Partners that the base holds in another layout: fused or split, stacked, transposed. Names and shapes propose, values decide.

A proposal is taken only where a sample of the fine-tune points the same way as the base's elements in that layout and no other layout
comes near; so neither square matrices nor the order of q, k and v are guessed. What most layers say holds for all: one that was made anew
has the layout, too, so that packs of one layout go together, and is kept whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltapack.checkpoint import Checkpoint, NameMatch, TensorInfo
from deltapack.checkpoint.families import Family, Reading, find_families, fused_from, parts_from, readings_of, siblings_of, without_numbers
from deltapack.format.arrangement import Arrangement, Piece
from deltapack.kernels import rounding

__all__ = ["propose_arrangements"]

_SAMPLES, _LENGTH = 32, 64
"""Runs of elements that are compared of a tensor, and how long one is."""
_GLANCE, _SURE = 4, 0.9
"""Runs that tell at a glance that two square matrices lie the same way round, as nearly all do, and the cosine that tells it."""
_GOLDEN = (5**0.5 - 1) / 2
_LIKE, _AHEAD = 0.5, 0.25
"""The cosine that two tensors need to be partners, and by how much it must be above that of any other layout."""
_PIECES = 512
"""Pieces of a tensor that are looked at one by one."""
_TRIED = 3
"""Layers by which the layout of all is chosen."""


def propose_arrangements(base: Checkpoint, finetuned: Checkpoint, match: NameMatch) -> tuple[Checkpoint, NameMatch]:
    """Match tensors that the base holds in another layout.

    Args:
        base: The base.
        finetuned: The fine-tune.
        match: What names have matched.

    Returns:
        The base, with the tensors of the fine-tune's layout that it can make of its own, and the match, to which these are added.
    """
    search = _Search(base, finetuned, match)
    found, renamed = search.transposed() | search.families(), search.siblings
    notes = list(search.notes)
    for name in [name for name in found if name in base.tensors and name not in found[name].names]:
        notes.append(f"{name!r} was not matched in another layout, as the base has another tensor of that name")
        del found[name]
    if not found and not renamed:
        return base, replace(match, notes=(*match.notes, *notes))
    base_of = dict(sorted({**match.base_of, **renamed, **{name: name for name in found}}.items()))
    used = {piece for arrangement in found.values() for piece in arrangement.names} | set(base_of.values())
    return base.with_arranged(found), replace(
        match,
        base_of=base_of,
        only_finetuned=tuple(name for name in match.only_finetuned if name not in base_of),
        only_base=tuple(name for name in match.only_base if name not in used),
        notes=(
            *match.notes,
            *notes,
            *_told(found),
            *_told_beside(renamed),
        ),
        unlike=tuple(name for name in search.unlike if name in found),
    )


def _told(found: Mapping[str, Arrangement]) -> Iterator[str]:
    """Say what was matched, once for all layers."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, arrangement in found.items():
        made_of = dict.fromkeys(without_numbers(piece)[0] for piece in arrangement.names)
        turned = "transposed" if any(piece.transposed for piece in arrangement.pieces) else ""
        groups.setdefault((without_numbers(name)[0], turned, *made_of), []).append(name)
    for (template, turned, *parts), names in groups.items():
        count = f"{len(names):,} tensors {template!r} were" if len(names) > 1 else f"{names[0]!r} was"
        yield f"{count} matched with the base's {' and '.join(map(repr, parts))}" + (", transposed" if turned else "")


def _told_beside(renamed: Mapping[str, str]) -> Iterator[str]:
    """Say which tensors beside those were matched under another name, once for all layers."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, of in renamed.items():
        groups.setdefault((without_numbers(name)[0], without_numbers(of)[0]), []).append(name)
    for (template, of), names in groups.items():
        count = f"{len(names):,} tensors {template!r} were" if len(names) > 1 else f"{names[0]!r} was"
        yield f"{count} matched with the base's {(of if len(names) > 1 else renamed[names[0]])!r}, beside these"


@dataclass
class _Search:
    """The search for layouts, with what it has to tell, and tensors beside those found that merely have another name."""

    base: Checkpoint
    finetuned: Checkpoint
    match: NameMatch

    def __post_init__(self) -> None:
        self.notes: list[str] = []
        self.siblings: dict[str, str] = {}
        self.unlike: list[str] = []
        taken = self.match.base_of
        misfits = {name: of for name, of in taken.items() if not _rows_fit(self.finetuned.tensors[name], self.base.tensors[of])}
        self.misfits = misfits
        self.free_base = _floats(self.base, {*self.match.only_base, *misfits.values()})
        self.free_tuned = _floats(self.finetuned, {*self.match.only_finetuned, *misfits})

    def transposed(self) -> dict[str, Arrangement]:
        """Return tensors that lie the other way round in the base under the name that they were matched with."""
        out: dict[str, Arrangement] = {}
        unclear: dict[str, Arrangement] = {}
        for name, of in self.match.base_of.items():
            tuned, held = self.finetuned.tensors[name], self.base.tensors[of]
            turned = (*held.shape[:-2], *held.shape[:-3:-1])
            if tuned.shape != turned or len(turned) < 2 or not (_is_float(tuned) and _is_float(held)) or not tuned.numel:
                continue
            square = held.shape == turned
            if square and self._cosine(self.base, name, of, _GLANCE) >= _SURE:
                continue
            plain = self._cosine(self.base, name, of) if square else 0.0
            if plain >= _LIKE:
                continue
            grid = tuple((size,) for size in tuned.shape)
            arrangement = Arrangement(grid, (Piece(of, (0,) * len(grid), True),))
            fits = self._fits({name: arrangement}) >= max(_LIKE, plain + _AHEAD)
            (out if fits else unclear)[name] = arrangement
        clear = {without_numbers(name)[0] for name in out}
        unlike = {name: arrangement for name, arrangement in unclear.items() if without_numbers(name)[0] in clear}
        self._tell_unlike(unlike)
        out.update(unlike)
        for name in out:
            self.free_base.pop(self.match.base_of[name], None)
            self.free_tuned.pop(name, None)
        return out

    def _tell_unlike(self, names: Iterable[str]) -> None:
        """Note tensors whose layout is that of others of their kind, with other values."""
        for name in names:
            self.unlike.append(name)
            self.notes.append(f"{name!r} is kept whole: it has the layout of others of its kind, but nothing of the base")

    def families(self) -> dict[str, Arrangement]:
        """Return fused tensors of the fine-tune made of the base's separate ones, and separate ones from its fused ones."""
        out: dict[str, Arrangement] = {}
        for fused, parts, fuse in ((self.free_tuned, self.free_base, True), (self.free_base, self.free_tuned, False)):
            groups: dict[tuple[str, ...], list[Family]] = {}
            families = find_families(fused, parts)
            for name, other in siblings_of(families, fused, parts).items():
                tuned, of = (other, name) if fuse else (name, other)
                if self.finetuned.tensors[tuned].shape == self.base.tensors[of].shape and self._cosine(self.base, tuned, of) >= _LIKE:
                    self.siblings[tuned] = of
            for family in families:
                groups.setdefault(family.key, []).append(family)
            orders: dict[tuple[str, ...], tuple[tuple[int, ...], int]] = {}
            for alike in sorted(groups.values(), key=lambda group: group[0].kind != "weight"):
                self._decide(alike, fused, parts, fuse, orders, out)
        return out

    def _decide(
        self,
        families: list[Family],
        fused: Mapping[str, TensorInfo],
        parts: Mapping[str, TensorInfo],
        fuse: bool,
        orders: dict[tuple[str, ...], tuple[tuple[int, ...], int]],
        out: dict[str, Arrangement],
    ) -> None:
        """Choose the layout of families that differ in their layer only, and add their tensors to `out`."""
        first, name = families[0], families[0].fused
        readings = readings_of(first, fused[name], parts)
        modules = tuple(part.rpartition(".")[0] for part in first.key[1:])
        if not readings:
            return

        def made(family: Family, reading: Reading) -> dict[str, Arrangement]:
            return {family.fused: fused_from(family, reading, parts)} if fuse else parts_from(family, reading, parts)

        tried = families[:: max(1, len(families) // _TRIED)][:_TRIED]
        known = [reading for reading in readings if (reading.order, reading.blocks) == orders.get(modules)]
        fits = [sorted(self._fits(made(family, reading)) for family in tried)[(len(tried) - 1) // 2] for reading in readings]
        scores = sorted(zip(fits, readings, strict=True), key=lambda score: -score[0])
        best, chosen = scores[0]
        clear = best >= _LIKE and (len(scores) == 1 or best >= scores[1][0] + _AHEAD)
        if not clear and first.kind == "bias" and len(known) == 1:
            chosen, clear = known[0], True  # as its weights; a bias may be nothing in the base
        if not clear:
            self.notes.append(f"{name!r} may hold {', '.join(map(repr, first.parts[0]))}, but their values fit in no way; not matched")
            return
        orders[modules] = chosen.order, chosen.blocks
        for family in families:
            arrangements = made(family, chosen) if readings_of(family, fused[family.fused], parts) else {}
            out.update(arrangements)
            if not arrangements:
                self.notes.append(f"{family.fused!r} was not matched, unlike others of its kind, as its shape does not fit")
            elif first.kind != "bias":
                self._tell_unlike(one for one, arrangement in arrangements.items() if self._worst_piece(one, arrangement) < _LIKE)

    def _fits(self, arrangements: Mapping[str, Arrangement]) -> float:
        """Return the least cosine of a few of some tensors."""
        names = list(arrangements)[:: max(1, len(arrangements) // 8)]
        view = self.base.with_arranged({name: arrangements[name] for name in names})
        return min(self._cosine(view, name, name) for name in names)

    def _worst_piece(self, name: str, arrangement: Arrangement) -> float:
        """Return the least cosine of the pieces of a tensor: one expert in the place of another is lost in the mean of many."""
        view, shape = self.base.with_arranged({name: arrangement}), self.finetuned.tensors[name].shape
        corners = itertools.product(*(itertools.accumulate((0, *extents[:-1])) for extents in arrangement.grid))
        cells = [(corner, cell) for corner, (_, cell) in zip(corners, arrangement.cells, strict=True)]
        return min(self._cosine_at(view, name, name, _runs_in(shape, *cell)) for cell in cells[:: max(1, len(cells) // _PIECES)])

    def _cosine(self, base: Checkpoint, name: str, of: str, samples: int = _SAMPLES) -> float:
        """Return the cosine of samples of two tensors of one shape."""
        numel = self.finetuned.tensors[name].numel
        # At irregular places: those of blocks that take turns are regular.
        starts = np.unique((np.arange(samples) * _GOLDEN % 1 * max(1, numel - _LENGTH + 1)).astype(np.int64))
        return self._cosine_at(base, name, of, [(start, min(start + _LENGTH, numel)) for start in map(int, starts)])

    def _cosine_at(self, base: Checkpoint, name: str, of: str, runs: Iterable[tuple[int, int]]) -> float:
        """Return the cosine of what is finite in some runs of elements of two tensors; 0 where one is nothing, 1 where both are."""
        tuned, held = self.finetuned.tensors[name], base.tensors[of]
        dots = np.zeros(3)
        for start, stop in runs:
            one = rounding.to_f64(self.finetuned.read(name, start, stop), tuned.dtype)
            other = rounding.to_f64(base.read(of, start, stop), held.dtype)
            finite = np.isfinite(one) & np.isfinite(other)
            one, other = one[finite], other[finite]
            with np.errstate(all="ignore"):
                dots += one @ other, one @ one, other @ other
        if not dots.any():
            return 1.0
        with np.errstate(all="ignore"):  # squares of what f64 can hold may be more than it can
            cosine = dots[0] / np.sqrt(dots[1]) / np.sqrt(dots[2])
        return float(cosine) if np.isfinite(cosine) else 0.0


def _runs_in(shape: Sequence[int], corner: Sequence[int], cell: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield a few runs of elements inside of a cell of a tensor, as ranges of its flat elements."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    length = min(_LENGTH, cell[-1])
    places = math.prod(cell[:-1]) * (cell[-1] - length + 1)
    for number in sorted({int((run + 0.5) * _GOLDEN % 1 * places) for run in range(_GLANCE)}):
        row, column = divmod(number, cell[-1] - length + 1)
        at = [*(int(one) for one in np.unravel_index(row, cell[:-1])), column] if len(cell) > 1 else [column]
        start = sum((first + one) * stride for first, one, stride in zip(corner, at, strides, strict=True))
        yield start, start + length


def _floats(checkpoint: Checkpoint, names: set[str]) -> dict[str, TensorInfo]:
    return {
        name: checkpoint.tensors[name] for name in sorted(names) if _is_float(checkpoint.tensors[name]) and checkpoint.tensors[name].numel
    }


def _is_float(info: TensorInfo) -> bool:
    """Whether elements are numbers by themselves: 8-bit floats may have scales in other tensors."""
    return info.dtype.is_delta and info.dtype.itemsize > 1


def _rows_fit(one: TensorInfo, other: TensorInfo) -> bool:
    return one.shape == other.shape or (len(one.shape) == len(other.shape) >= 1 and one.shape[1:] == other.shape[1:])
