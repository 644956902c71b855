"""Which tensors of a training state are the model's, by where they lie in the nested dict that was saved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from deltapack.errors import CheckpointError, NotACheckpointError

__all__ = ["WRAPPERS", "ModelTensors", "model_tensors"]

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys that training tools put the model's own state dict under."""
_OF_TRAINING = re.compile(
    r"(.*[_-])?(optim(izer)?s?|schedulers?|dataloaders?|scaler)([_-].*)?|rng([_-].*)?|train(er|ing)?_state|callbacks|loops", re.IGNORECASE
)
"""Keys of what only a trainer needs."""
_FLAT = re.compile(
    r"(optim(izer)?s?|optim(izer)?_states?|lr_schedulers?|schedulers?|rng_states?|train_state|dataloader)\..*", re.IGNORECASE
)
"""How flat keys of it begin, where no nested dict says so; a module of a model may well be called like one of the others."""
_NAMED = 4


@dataclass(frozen=True)
class ModelTensors:
    """What was chosen.

    Attributes:
        names: From the key of a tensor in the whole state to its name in the model.
        notes: What the user should be told about the choice.
    """

    names: Mapping[str, str]
    notes: tuple[str, ...]


def model_tensors(keys: Iterable[str], paths: Mapping[str, Sequence[str]], path: Path) -> ModelTensors:
    """Choose the model's tensors, and call them as the model does.

    Everything under a key of an optimizer, scheduler, data loader or the like is left out. Of the rest, what lies under one of
    `WRAPPERS` is the model; where nothing does, all of it.

    Args:
        keys: The tensors, by their flat keys, such as `app.model.layers.0.weight`.
        paths: The keys of the nested dicts that lead to a tensor, such as `app`, `model`, `layers.0.weight`, for those where it is known.
        path: The checkpoint, for errors.

    Raises:
        CheckpointError: Two tensors get one name.
        NotACheckpointError: No tensor is left, or there are several models.
    """
    known = {key: tuple(paths.get(key, (key,))) for key in keys}
    state = {key for key, own in known.items() if any(map(_OF_TRAINING.fullmatch, own[:-1])) or (len(own) == 1 and _FLAT.match(own[0]))}
    kept = {key: own for key, own in known.items() if key not in state}
    if not kept:
        what = "the checkpoint holds no tensors of a model" + (", but the state of an optimizer" if state else "")
        raise NotACheckpointError(what, path=path, expected="the state dict of a model", found=_some(sorted(known)) or "nothing")
    roots = sorted({root for root in map(_wrapper, kept.values()) if root})
    if len(roots) > 1:
        found = " and ".join(".".join(root) for root in roots[:_NAMED])
        raise NotACheckpointError("more than one model in the checkpoint", path=path, found=found, hint="Save the one to pack by itself.")
    root = roots[0] if roots else _common([own[:-1] for own in kept.values()])
    names = {key: ".".join(own[len(root) :]) for key, own in kept.items() if own[: len(root)] == root}
    if len(set(names.values())) != len(names):
        twice, _ = Counter(names.values()).most_common(1)[0]
        raise CheckpointError("two tensors of the model have one name", path=path, tensor=twice)
    left = sorted({_label(own, root) for key, own in known.items() if key not in names})
    return ModelTensors(names, _notes(root, left))


def _wrapper(own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the part of a path that ends with the first wrapper; nothing where it has none."""
    before = len(tuple(takewhile(lambda part: part not in WRAPPERS, own[:-1])))
    return own[: before + 1] if before < len(own) - 1 else ()


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return what all paths begin with."""
    first, last = min(paths), max(paths)
    return tuple(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _label(own: tuple[str, ...], root: tuple[str, ...]) -> str:
    """Return a short name for what is left out: the first part that is not the model's, and what is above it."""
    shared = len(_common([own[:-1], root]))
    return ".".join(own[: shared + 1]) if len(own) > 1 else ".".join(own[0].split(".")[:1])


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _notes(root: tuple[str, ...], left: Sequence[str]) -> tuple[str, ...]:
    if not left:
        return ()
    return (f"of the distributed checkpoint {'.'.join(root) or 'the model'} was read, not {_some(left)}",)
