"""Which sub-folders a result has: those of its packs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltapack.errors import MergeConflictError
from deltapack.format.folders import folder_of
from deltapack.format.reader import PackReader

__all__ = ["folders_of_result"]


def folders_of_result(packs: Sequence[PackReader], names: Iterable[str], preferred: PackReader | None) -> dict[str, str]:
    """Return the sub-folders with tensors among `names`, each with the name of its weight file.

    Args:
        packs: The packs; where they name the file of a folder differently, the preferred one counts, else the first.
        names: The tensors of the result, second names too.
        preferred: The pack that decides, if one does.

    Raises:
        MergeConflictError: A tensor is in a folder by one pack and not by another that has it.
    """
    known: dict[str, str] = {}
    for pack in [*([] if preferred is None else [preferred]), *packs]:
        for folder, stem in pack.index.folders.items():
            known.setdefault(folder, stem)
    if not known:
        return {}
    for pack in packs:
        for entry in pack.index.entries:
            if entry.kind != "removed" and folder_of(entry.name, pack.index.folders) != folder_of(entry.name, known):
                hint = "The base of one of them had its tensors elsewhere; merge packs of one layout."
                raise MergeConflictError("packs put a tensor into different folders", path=pack.path, tensor=entry.name, hint=hint)
    used = {folder_of(name, known) for name in names}
    return {folder: stem for folder, stem in sorted(known.items()) if folder in used}
