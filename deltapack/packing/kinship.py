"""Is this fine-tune one of that base? What has no partner, what nothing uses, what changed beyond recognition, before a pack is begun."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack.checkpoint import Checkpoint, NameMatch, TensorInfo
from deltapack.checkpoint.similar import nearest_names
from deltapack.errors import BaseMismatchError, CheckpointError, UnsupportedError
from deltapack.kernels.rounding import to_f64
from deltapack.packing.roles import ROLES

__all__ = [
    "Kinship",
    "check_codes",
    "check_export",
    "check_placeholders",
    "doubt_exact",
    "measure_kinship",
    "refuse_unrelated",
    "shortened",
]

WARNED, REFUSED = 0.1, 0.5
"""Shares of the bytes above which a person is told, and above which nothing is packed."""

_NORM, _COSINE, _SCALE = 0.7, 0.5, 10.0
"""Relative norm of a difference and cosine of two tensors that have nothing to do with each other, and a ratio of their norms that says
that they are not in the same units, such as codes and what they stand for."""
_SPOTS, _SPOT = 4, 1024
_MEASURED = 1000
"""Tensors that are sampled at most, the largest first."""


@dataclass(frozen=True)
class Kinship:
    """How a fine-tune and its base belong together.

    Attributes:
        alone: Float tensors of the fine-tune without a partner of fitting shape.
        unused: Float tensors of the base that are no partner.
        changed: Matched weights whose difference is as large as the tensor itself, in a sample of their elements.
        alone_share: Share of the fine-tune's float bytes that are alone.
        unused_share: Share of the base's float bytes that are unused.
        changed_share: Share of the fine-tune's float bytes that are changed so.
    """

    alone: tuple[str, ...]
    unused: tuple[str, ...]
    changed: tuple[str, ...]
    alone_share: float
    unused_share: float
    changed_share: float


def measure_kinship(
    base: Checkpoint, finetuned: Checkpoint, match: NameMatch, roles: Mapping[str, str], kept: Collection[str] = ()
) -> Kinship:
    """Compare headers, and a few thousand elements of each large weight; `kept` are tensors of the base that stay all the same."""
    floats = {name: tensor for name, tensor in finetuned.tensors.items() if tensor.dtype.is_delta}
    partners = {name: base.tensors[match.base_of[name]] for name in floats if name in match.base_of}
    fitting = {name for name, partner in partners.items() if partner.dtype.is_delta and partner.shape[1:] == floats[name].shape[1:]}
    made_of = {name: arranged.names for name in match.base_of.values() if (arranged := base.tensors[name].arranged) is not None}
    used = {held for name in match.base_of.values() for held in made_of.get(name, (name,))} | set(kept)
    at_base = {name: tensor for name, tensor in base.files.tensors.items() if tensor.dtype.is_delta}
    weights = [name for name in fitting if ROLES[roles[name]].route == "drop"]
    weights = sorted(weights, key=lambda name: (-floats[name].nbytes, name))[:_MEASURED]
    changed = tuple(sorted(name for name in weights if _is_another(base, finetuned, partners[name], floats[name])))
    alone = tuple(name for name in floats if name not in fitting)
    unused = tuple(name for name in at_base if name not in used)
    total = sum(tensor.nbytes for tensor in floats.values())
    return Kinship(
        alone,
        unused,
        changed,
        _share(alone, floats, total),
        _share(unused, at_base, sum(tensor.nbytes for tensor in at_base.values())),
        _share(changed, floats, total),
    )


def refuse_unrelated(kinship: Kinship, base: Checkpoint, finetuned: Checkpoint, *, allowed: bool) -> list[str]:
    """Return warnings about what does not belong together.

    Raises:
        BaseMismatchError: Most of it does not, and that was not `allowed`.
    """
    left = {name: base.files.tensors[name] for name in kinship.unused}
    said: tuple[tuple[float, tuple[str, ...], str, Mapping[str, TensorInfo]], ...] = (
        (kinship.alone_share, kinship.alone, "of the fine-tune's float bytes have no partner in the base and are kept whole", left),
        (kinship.unused_share, kinship.unused, "of the base's float bytes are used by nothing in the fine-tune", {}),
        (kinship.changed_share, kinship.changed, "of the fine-tune's float bytes differ from their partner as much as they are large", {}),
    )
    if not allowed:
        for share, names, what, among in said:
            if share > REFUSED:
                raise BaseMismatchError(
                    "this is no fine-tune of that base",
                    path=finetuned.path,
                    tensor=names[0],
                    expected=f"most tensors to have a partner in {base.path}",
                    found=f"{100 * share:.0f} % {what}{_candidates(names[:1], finetuned, among)}",
                    hint="Are BASE and FINETUNED in this order? --map gives names a partner; --allow-unrelated packs it all the same.",
                )
    return [
        f"{100 * share:.0f} % {what}: {shortened(names)}{_candidates(names[:3], finetuned, among)}."
        + (" --map gives them a partner." if among else "")
        for share, names, what, among in said
        if share > WARNED
    ]


def doubt_exact(kinship: Kinship, base: Checkpoint) -> list[str]:
    """Return a warning where an exact pack, which is right with any base, is of one that is of no use for it."""
    if kinship.changed_share <= REFUSED:
        return []
    return [
        f"{100 * kinship.changed_share:.0f} % of the fine-tune's float bytes differ from their partner in {base.path} as much as they are "
        f"large: {shortened(kinship.changed)}. The pack is exact, and about as large as if there were no base: is it the right one, and "
        "are BASE and FINETUNED in this order? --allow-unrelated leaves this out."
    ]


def check_placeholders(base: Checkpoint, finetuned: Checkpoint, match: NameMatch) -> None:
    """Refuse tensors without elements where the base has some.

    Raises:
        CheckpointError: There is one: ZeRO-3 saves such placeholders unless told to gather the weights.
    """
    ends: dict[str, list[str]] = {}
    for name in match.only_base:
        ends.setdefault(_end(name), []).append(name)
    for name, tensor in finetuned.tensors.items():
        partner = match.base_of.get(name) or next(iter(ends.get(_end(name), [])), None)
        if tensor.numel == 0 and partner is not None and base.tensors[partner].numel:
            raise CheckpointError(
                "the tensor has no elements where the base has some: the checkpoint was saved without gathering its parts",
                path=finetuned.path,
                tensor=name,
                expected=list(base.tensors[partner].shape),
                found=list(tensor.shape),
                hint="With DeepSpeed ZeRO-3 set stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py and pack what it writes.",
            )


def _end(name: str) -> str:
    """Return the last two parts of a name, which a wrapper or another prefix does not change."""
    return ".".join(name.replace("/", ".").split(".")[-2:])


def check_codes(
    base: Checkpoint,
    finetuned: Checkpoint,
    match: NameMatch,
    roles: tuple[Mapping[str, str], Mapping[str, str]],
    exact: Collection[str],
) -> None:
    """Refuse to pair quantised codes with weights.

    Args:
        base: The base.
        finetuned: The fine-tune.
        match: Their names.
        roles: Roles of the base's tensors and of the fine-tune's by their names.
        exact: Tensors of the fine-tune that the user wants bit for bit.

    Raises:
        UnsupportedError: One side holds codes where the other holds weights.
    """
    of_base, of_tuned = roles
    codes = {name for name, role in of_tuned.items() if role == "quantised"}
    at_base = {name for name, role in of_base.items() if role == "quantised"}
    for name, partner in match.base_of.items():
        if (name in codes) == (partner in at_base) or name in exact:
            continue
        one, other = finetuned.tensors[name], base.tensors[partner]
        raise UnsupportedError(
            "one side holds quantised codes, the other weights; a difference of the two means nothing",
            path=finetuned.path,
            tensor=name,
            expected=f"what {partner!r} of the base is: {other.dtype} {list(other.shape)}{', codes' if partner in at_base else ''}",
            found=f"{one.dtype} {list(one.shape)}{', codes' if name in codes else ''}",
            hint="Pack two checkpoints of one kind: dequantise the quantised one, or quantise the other alike. "
            f"--set '{name}:role=exact' keeps the tensor bit for bit.",
        )


def check_export(base: Checkpoint, finetuned: Checkpoint, match: NameMatch, roles: Mapping[str, str]) -> None:
    """Refuse a quantised export of a base that is not quantised: it would be kept whole.

    Raises:
        UnsupportedError: More than a tenth of the fine-tune's bytes are codes that have no partner.
    """
    codes = [name for name, role in roles.items() if role == "quantised" and name not in match.base_of]
    total = sum(tensor.nbytes for tensor in finetuned.tensors.values())
    share = _share(codes, finetuned.tensors, total)
    if share > WARNED:
        raise UnsupportedError(
            "this is a quantised export, and the base is not quantised alike",
            path=finetuned.path,
            tensor=codes[0],
            expected=f"codes that {base.path} has, too",
            found=f"{100 * share:.0f} % of its bytes are codes and scales without a partner: {shortened(codes)}",
            hint="Pack the checkpoint that it was made from, and quantise what is restored; --allow-unrelated keeps it whole.",
        )


def shortened(names: Sequence[str], count: int = 4) -> str:
    """Return the first names and how many more there are.

    >>> shortened(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more:,} more" if more > 0 else "")


def _candidates(names: Iterable[str], finetuned: Checkpoint, among: Mapping[str, TensorInfo]) -> str:
    found = [(name, nearest_names(name, finetuned.tensors[name], among, 1)) for name in names] if among else []
    pairs = [f"{near[0]!r} for {name!r}" for name, near in found if near]
    return f" (nearest in the base: {', '.join(pairs)})" if pairs else ""


def _share(names: Iterable[str], tensors: Mapping[str, TensorInfo], total: int) -> float:
    return sum(tensors[name].nbytes for name in names) / total if total else 0.0


def _is_another(base: Checkpoint, finetuned: Checkpoint, partner: TensorInfo, tensor: TensorInfo) -> bool:
    """Whether a sample of two tensors says that they have nothing to do with each other."""
    common = min(partner.numel, tensor.numel)
    starts = sorted({(common - _SPOT) * spot // (_SPOTS - 1) for spot in range(_SPOTS)}) if common > _SPOTS * _SPOT else [0]
    length = _SPOT if common > _SPOTS * _SPOT else common
    one = np.concatenate([_floats(base, partner, start, length) for start in starts])
    other = np.concatenate([_floats(finetuned, tensor, start, length) for start in starts])
    finite = np.isfinite(one) & np.isfinite(other)
    one, other = one[finite], other[finite]
    # Squares of what f64 can hold may be more than it can.
    largest = max(np.abs(one).max(initial=0), np.abs(other).max(initial=0)) or 1.0
    one, other = one / largest, other / largest
    square, product, whole = float(one @ one), float(one @ other), float(other @ other)
    difference = max(square - 2 * product + whole, 0.0)
    if not (difference and square and whole):
        return False
    turned = difference > _NORM**2 * square and product < _COSINE * np.sqrt(square * whole)
    return bool(turned or not 1 / _SCALE**2 < whole / square < _SCALE**2)


def _floats(checkpoint: Checkpoint, tensor: TensorInfo, start: int, length: int) -> NDArray[np.float64]:
    return to_f64(checkpoint.read(tensor.name, start, start + length), tensor.dtype)
