"""An embedding and a head that are one tensor: an adapter that changes one of them has no right result."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from deltapack.adapters.placing import HEAD, UNTIE, Placed
from deltapack.checkpoint import Checkpoint, config_of
from deltapack.errors import UnsupportedError

__all__ = ["without_ties"]

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight")
_HEADED = re.compile(r"LM|ConditionalGeneration|Seq2Seq")


def without_ties(base: Checkpoint, path: Path, placed: Sequence[Placed], same: Callable[[str, str], bool]) -> list[Placed]:
    """Return what becomes of tensors without the second copy of one that is tied.

    Args:
        base: The base.
        path: The adapter's file.
        placed: What becomes of tensors.
        same: Whether two tensors of the adapter have the same bits.

    Raises:
        UnsupportedError: A tied tensor is changed under one of its names, or differently under two.
    """
    second = set[str]()
    for alias, kept in base.aliases.items():
        changed = [item for item in placed if item.name in (alias, kept)]
        if changed:
            _check_pair(path, changed, base.path, same)
            second.add(alias)
    ends = [item for item in placed if _EMBEDDING.fullmatch(item.name) or HEAD.fullmatch(item.name)]
    if ends and not second and _are_tied(base):
        _check_pair(path, ends, base.path, same)
        second |= {item.name for item in ends if item.name not in base.tensors}
    return [item for item in placed if item.name not in second]


def _check_pair(path: Path, changed: Sequence[Placed], base: Path, same: Callable[[str, str], bool]) -> None:
    """Allow both names of a tied tensor to be saved whole, and to be the same."""
    whole = [item.whole for item in changed if item.whole is not None and item.group is None]
    if len(changed) != 2 or len(whole) != 2 or not same(whole[0], whole[1]):
        tensor, expected = changed[0].name, f"no change of one name alone, as it is tied in {base}"
        raise UnsupportedError("the adapter changes a tied tensor", path=path, tensor=tensor, expected=expected, hint=UNTIE)


def _are_tied(base: Checkpoint) -> bool:
    """Whether the base's embedding is its head, too: its config says so, or does not say and the head is not there."""
    config = config_of(base)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    said = [part["tie_word_embeddings"] for part in parts if isinstance(part.get("tie_word_embeddings"), bool)]
    if said:
        return any(said)
    headless = not any(map(HEAD.fullmatch, base.tensors))
    return headless and any(_HEADED.search(str(part.get("architectures"))) for part in parts)
