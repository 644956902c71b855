"""The names of a base that are most like a given one, for messages."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from difflib import SequenceMatcher

from deltapack.checkpoint.keys import fits
from deltapack.checkpoint.tensors import TensorInfo

__all__ = ["nearest_names"]

_COMPARED = 64
"""So many names are compared letter by letter."""
_LETTERS = 200


def nearest_names(name: str, info: TensorInfo, among: Mapping[str, TensorInfo], count: int = 3) -> tuple[str, ...]:
    """Return the names most like one, the most similar first, of tensors that it could be matched with.

    Names that share parts with it are looked at first; only a few of them are compared letter by letter, so that many or long
    names cost no more than a look at each.

    Args:
        name: A name of the fine-tune.
        info: Its tensor; shapes must be equal but for the rows of a matrix.
        among: Tensors of the base.
        count: How many names at most.
    """
    wanted = Counter(name[:_LETTERS].split("."))
    fitting = (other for other, there in among.items() if fits(info, there))
    shared = ((sum((wanted & Counter(other[:_LETTERS].split("."))).values()), other) for other in fitting)
    best = heapq.nsmallest(_COMPARED, shared, key=lambda item: (-item[0], abs(len(item[1]) - len(name)), item[1]))
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name[:_LETTERS])

    def likeness(other: str) -> float:
        matcher.set_seq1(other[:_LETTERS])
        return matcher.ratio()

    ranked = sorted(((likeness(other), other) for _, other in best), key=lambda item: (-item[0], item[1]))
    return tuple(other for _, other in ranked[:count])
