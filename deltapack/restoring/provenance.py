"""Where a restored or merged checkpoint is from, in the metadata of its safetensors files.

Neither paths nor times: the same packs give the same bytes wherever and whenever they are applied. A merged pack speaks for the packs that
it was merged from, so that merging into a folder and applying the merged pack give the same bytes, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltapack._version import __version__
from deltapack.checkpoint.safetensors import OWN_METADATA
from deltapack.composing.compose import Composition
from deltapack.composing.weighted import WeightedPack

__all__ = ["KEYS", "merged", "restored"]

KEYS = ("version", "base", "packs", "fidelity")
"""What stands after `deltapack.`: version of the tool, fingerprint of the base, ids of the packs in order with commas between, and whether
these are the fine-tune's very tensors (`exact`) or not (`lossy`), or of several packs (`merged`)."""
_ID = re.compile(r"[0-9a-f]{64}")


def restored(pack: WeightedPack, composition: Composition, *, verify: bool) -> Mapping[str, str]:
    """Return what the files of a restored checkpoint say of it.

    Args:
        pack: The pack and how it is applied.
        composition: What the result is made of.
        verify: Whether digests are compared; without, nothing is called exact.
    """
    index = pack.reader.index
    if "packs" in index.recipe:
        return _metadata(index.base_fingerprint, _merged_from(index.recipe) or [pack.reader.pack_id], "merged")
    # Nothing was added to anything: all tensors are the base's, or stored whole, with the digests that the pack promises.
    exact = verify and pack.is_plain and all(job.digest and not job.terms for job in composition.jobs)
    return _metadata(index.base_fingerprint, [pack.reader.pack_id], "exact" if exact else "lossy")


def merged(packs: Sequence[WeightedPack]) -> Mapping[str, str]:
    """Return what the files of a merge of packs say of it, as `restored` does of a merged pack."""
    return _metadata(packs[0].reader.index.base_fingerprint, [pack.reader.pack_id for pack in packs], "merged")


def _merged_from(recipe: Mapping[str, Any]) -> list[str]:
    """Return the ids of the packs that a merged pack says it was merged from; none where that cannot be read."""
    rows = recipe["packs"]
    ids = [str(row.get("id")) if isinstance(row, dict) else "" for row in rows] if isinstance(rows, list) else []
    return ids if all(map(_ID.fullmatch, ids)) else []


def _metadata(base: str, packs: Sequence[str], fidelity: str) -> Mapping[str, str]:
    values = __version__, base, ",".join(packs), fidelity
    return {f"{OWN_METADATA}{key}": value for key, value in zip(KEYS, values, strict=True)}
