"""Second names of tied tensors, as several packs have them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from deltapack.errors import MergeConflictError
from deltapack.format.reader import PackReader

__all__ = ["second_names"]


def second_names(packs: Sequence[PackReader], names: Collection[str], preferred: PackReader | None) -> dict[str, str]:
    """Return the second names of tensors of the result (spec/09-weights-and-several-packs.md section 9.5).

    A name that the result holds as a tensor is no second name, and a tensor that the result lacks has none.

    Args:
        packs: The packs in order.
        names: Names of the result's tensors.
        preferred: The pack that decides where packs disagree.

    Raises:
        MergeConflictError: Packs tie one name to different tensors, and none of them is the preferred one.
    """
    out: dict[str, str] = {}
    for pack in sorted(packs, key=lambda pack: pack is not preferred):
        for name, of in _tied(pack).items():
            if of not in names or name in names or out.setdefault(name, of) == of:
                continue
            if preferred is None or _tied(preferred).get(name) != out[name]:
                raise MergeConflictError(
                    "packs tie this name to different tensors",
                    path=pack.path,
                    tensor=name,
                    expected=repr(out[name]),
                    found=repr(of),
                    hint="Say which pack decides with --prefer PACK.",
                )
    return out


def _tied(pack: PackReader) -> dict[str, str]:
    return {entry.name: entry.of for entry in pack.index.entries if entry.kind == "alias"}
