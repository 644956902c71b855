"""Which tensor of the base each part of an adapter is for, checked before anything is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltapack.adapters.grouping import Group, Groups
from deltapack.adapters.settings import MERGE_BY_PEFT, Settings
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.errors import BaseMismatchError, CheckpointError, UnsupportedError, did_you_mean

__all__ = ["FLOATS", "HEAD", "UNTIE", "Placed", "place", "rename_rule"]

FLOATS = ("f32", "f16", "bf16")
"""Element types in which f32 arithmetic rounds once."""
HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|cls\.predictions\.decoder)\.weight")
"""How models call the head that may be their embedding."""
UNTIE = "Load the base with tie_word_embeddings=False, save it with a head of its own, and give that as BASE."


@dataclass(frozen=True)
class Placed:
    """What becomes of one tensor of the base, or a new tensor.

    Attributes:
        name: Its name in the base, or in the model where the base has none.
        whole: The tensor of the adapter that takes the base's place, if one does.
        group: The factors that are added, if there are any.
        transposed: Whether the weight is stored the other way round than the factors multiply.
    """

    name: str
    whole: str | None = None
    group: Group | None = None
    transposed: bool = False


def place(
    base: Checkpoint, path: Path, infos: Mapping[str, TensorInfo], groups: Groups, settings: Settings
) -> tuple[list[Placed], list[str]]:
    """Find the base's tensor for each part of an adapter.

    Args:
        base: The base.
        path: The adapter's file.
        infos: The adapter's tensors.
        groups: The same in groups.
        settings: What its config says.

    Returns:
        What becomes of tensors, and notes.

    Raises:
        BaseMismatchError: The base has no such tensor, or one of another shape.
        CheckpointError: Factors do not fit one another.
        UnsupportedError: A weight of the base is quantised, or nobody knows which way round it is.
    """
    wanted = {f"{module}.weight": group for module, group in groups.updates.items()}
    known = {*base.tensors, *base.aliases}
    prefix, other = rename_rule(known, [*wanted, *(name for name in groups.whole if not settings.is_saved(name))])
    notes = [f"names of the adapter begin with {prefix!r} where those of the base begin with {other!r}"] if prefix or other else []

    def in_base(name: str) -> str:
        moved = other + name.removeprefix(prefix) if name.startswith(prefix) else name
        return moved if name not in known and moved in known else name

    settings.check_patterns(groups.updates)
    for group in groups.updates.values():
        _check_rank(path, infos, group, settings)
    shapes = {name: _update_shape(path, infos, group) for name, group in wanted.items()}
    whole = {in_base(name): tensor for name, tensor in groups.whole.items()}
    adapted = set(map(in_base, wanted))
    placed = [Placed(name, tensor) for name, tensor in whole.items() if name not in adapted]
    for item in placed:
        notes += _check_whole(base, path, infos, item, settings)
    ways = {name: _way(base, path, group, in_base(name), shapes[name], infos, whole) for name, group in wanted.items()}
    for name, group in wanted.items():
        turned = _turned(base, path, group, ways, name, settings.transposed)
        placed.append(Placed(in_base(name), whole.get(in_base(name)), group, turned))
    return placed, notes


def rename_rule(known: Iterable[str], wanted: Sequence[str]) -> tuple[str, str]:
    """Return the beginning of wanted names, and what stands for it in the names that are known; both empty where nothing is to be done.

    A base may be saved without the wrapper that the adapter was trained in (`transformer.h.0` and `h.0`), or with one more.

    >>> rename_rule(["h.0.w", "h.1.w"], ["transformer.h.0.w", "transformer.h.1.w"])
    ('transformer.', '')
    >>> rename_rule(["m.a", "m.b"], ["a"]), rename_rule(["a"], ["b"])
    (('', 'm.'), ('', ''))
    """
    names = set(known)
    lost = [name for name in wanted if name not in names]
    if not lost:
        return "", ""
    first = lost[0]
    starts = [first[: at + 1] for at, letter in enumerate(first) if letter == "."]
    rules = [(start, "") for start in starts if first.removeprefix(start) in names]
    rules += [("", name.removesuffix(first)) for name in sorted(names) if name.endswith(f".{first}")]
    fitting = [(old, new) for old, new in rules if all(name.startswith(old) and new + name.removeprefix(old) in names for name in lost)]
    return fitting[0] if len(fitting) == 1 else ("", "")


def _check_whole(base: Checkpoint, path: Path, infos: Mapping[str, TensorInfo], item: Placed, settings: Settings) -> Iterator[str]:
    """Check a tensor that takes the place of the base's, or is new."""
    assert item.whole is not None
    own, held = infos[item.whole], base.tensors.get(base.aliases.get(item.name, item.name))
    if held is None:
        if not settings.is_saved(item.name):
            raise _missing(base, path, item.whole, item.name)
        yield f"{item.name} is new: config.json is the base's, and may ask for another class of model"
        return
    if own.dtype != held.dtype and (own.dtype.name not in FLOATS or held.dtype.name not in FLOATS):
        what = "the tensor is of another kind than the base's"
        raise UnsupportedError(what, path=path, tensor=item.whole, expected=held.dtype, found=own.dtype, hint=MERGE_BY_PEFT)
    if own.shape != held.shape:
        rows = len(own.shape) == 2 and own.shape[1:] == held.shape[1:]
        if not rows:
            raise _other_shape(base, path, item.whole, held, own.shape)
        yield f"{item.name} has {own.shape[0]} rows instead of {held.shape[0]}: config.json is the base's, and may say the old number"


def _check_rank(path: Path, infos: Mapping[str, TensorInfo], group: Group, settings: Settings) -> None:
    """Compare the rank of factors with the config, which the factor of the update depends on; LoKr's whole factors have none."""
    says = settings.rank_of(group.module)
    for part in ("lora_A", "lora_embedding_A", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"):
        shape = infos[group.parts[part]].shape if part in group.parts else (says,)
        if shape[:1] != (says,):
            expected, found = f"{says} rows, the rank that {settings.path.name} says", list(shape)
            raise CheckpointError("the factor is of another rank", path=path, tensor=group.parts[part], expected=expected, found=found)


def _update_shape(path: Path, infos: Mapping[str, TensorInfo], group: Group) -> tuple[int, int]:
    """Return rows and columns of an update as its factors give them."""
    shape = {part: infos[name].shape for part, name in group.parts.items()}
    for name in group.parts.values():
        if infos[name].dtype.name not in FLOATS:
            found = infos[name].dtype
            raise UnsupportedError(
                "a factor has a type that is not merged here", path=path, tensor=name, expected=", ".join(FLOATS), found=found
            )

    def product(left: str, right: str) -> tuple[int, int]:
        one, two = shape[left], shape[right]
        fits = len(one) == len(two) >= 2 and one[1] == two[0] > 0 and all(size == 1 for size in one[2:])
        if not fits or (len(one) > 2 and left != "lora_B"):
            raise CheckpointError(
                "the factors of the module do not fit one another",
                path=path,
                tensor=group.parts[left],
                expected=f"columns as many as {group.parts[right]!r} {list(two)} has rows",
                found=list(one),
                hint="A convolution in groups has such factors. " + MERGE_BY_PEFT if len(one) > 2 else None,
            )
        return one[0], math.prod(two[1:])

    def side(name: str) -> tuple[int, int]:
        if name not in shape:
            return product(f"{name}_a", f"{name}_b")
        if len(shape[name]) != 2:
            raise CheckpointError(
                "the factor is no matrix", path=path, tensor=group.parts[name], found=list(shape[name]), hint=MERGE_BY_PEFT
            )
        return shape[name][0], shape[name][1]

    if "lora_B" in shape:
        return product("lora_B", "lora_A")
    if "lora_embedding_B" in shape:
        return product("lora_embedding_B", "lora_embedding_A")[::-1]
    one, two = (side("hada_w1"), side("hada_w2")) if "hada_w1_a" in shape else (side("lokr_w1"), side("lokr_w2"))
    if "hada_w1_a" not in shape:
        return one[0] * two[0], one[1] * two[1]
    if one != two:
        raise CheckpointError("the two products of the module differ", path=path, tensor=group.any_name, expected=one, found=two)
    return one


def _way(
    base: Checkpoint,
    path: Path,
    group: Group,
    name: str,
    shape: tuple[int, int],
    infos: Mapping[str, TensorInfo],
    whole: Mapping[str, str],
) -> bool | None:
    """Return whether the base's weight is the other way round than the update; none where the shape does not tell."""
    held = base.tensors.get(base.aliases.get(name, name))
    if held is None:
        raise _missing(base, path, group.any_name, name)
    if held.dtype.name not in FLOATS:
        raise UnsupportedError(
            "the base's weight is quantised, or of a type that an adapter is not merged into",
            path=base.path,
            tensor=name,
            expected=", ".join(FLOATS),
            found=held.dtype,
            hint="Take the base in bf16, f16 or f32 that it was quantised from.",
        )
    there = infos[whole[name]].shape if name in whole else held.shape
    if len(there) < 2:
        raise _other_shape(base, path, group.any_name, held, shape)
    seen = there[0], math.prod(there[1:])
    turns = "lora_B" in group.parts and len(there) == 2
    if seen != shape and not (turns and seen == shape[::-1]):
        raise _other_shape(base, path, group.any_name, held, shape)
    return None if turns and shape[0] == shape[1] else seen != shape


def _turned(base: Checkpoint, path: Path, group: Group, ways: Mapping[str, bool | None], name: str, says: bool) -> bool:
    """Return whether a weight is stored the other way round; of square ones this is what the config and all others say."""
    way = ways[name]
    if way is not None:
        return way
    others = {way for name, way in ways.items() if way is not None and not name.endswith(("embed_tokens.weight", "wte.weight"))}
    if others - {says}:
        raise UnsupportedError(
            "nobody knows which way round the square weight is stored",
            path=base.path,
            tensor=name,
            expected=f"fan_in_fan_out to be right for all weights of {path}",
            found=f"fan_in_fan_out {str(says).lower()}, and weights whose shape says otherwise",
            hint=MERGE_BY_PEFT,
        )
    return says


def _missing(base: Checkpoint, path: Path, tensor: str, name: str) -> BaseMismatchError:
    """Return the error for a tensor that the base lacks."""
    module = name.rpartition(".")[0]
    codes = [found for found in base.tensors if found.startswith(f"{module}.q") or found.startswith(f"{module}.weight_")]
    hint = f"The base has {', '.join(codes[:2])}: is it quantised? Take the one that it was quantised from." if codes else None
    hint = hint or (f"Is it tied to the embedding? {UNTIE}" if HEAD.fullmatch(name) else None)
    hint = hint or f"{did_you_mean(name, base.tensors) or ''} Is this the base of the adapter?".lstrip()
    return BaseMismatchError(
        "the adapter is for a tensor that the base lacks", path=path, tensor=tensor, expected=f"{name!r} in {base.path}", hint=hint
    )


def _other_shape(base: Checkpoint, path: Path, tensor: str, held: TensorInfo, shape: Sequence[int]) -> BaseMismatchError:
    """Return the error for a tensor of another shape in the base."""
    expected, hint = f"{list(held.shape)} as {held.name!r} has in {base.path}", "Is this the base of the adapter?"
    return BaseMismatchError(
        "the adapter is for a weight of another shape", path=path, tensor=tensor, expected=expected, found=list(shape), hint=hint
    )
