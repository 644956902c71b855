"""Digests that fit what a changed pack restores, so that it is refused for another reason or accepted."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from fuzz.packfile import Blob, Document, put_together, settle_totals
from fuzz.spec import reference_decoder

__all__ = ["MOST_ELEMENTS", "settle_digests", "settle_files"]

Tensor = tuple[str, tuple[int, ...], bytes]
MOST_ELEMENTS = 1 << 22
"""Of a tensor that is restored to know its digest."""


def settle_digests(document: Document, base: Mapping[str, Tensor]) -> None:
    """Restore each tensor as far as the reference decoder can, and state the digests of what comes out, and of the base.

    Entries that cannot be restored keep what they say.
    """
    spec, index = reference_decoder(), document.index
    if not (isinstance(index, dict) and isinstance(index.get("tensors"), list)):
        return
    data = put_together(document)
    try:
        stored, raw_length = spec.read_prologue(data)
        written = spec.json.loads(spec.unzstd(stored, raw_length))
        tables = spec.shared_tables({"data": data, "index": written})
    except (spec.Invalid, ValueError, TypeError, RecursionError, LookupError, AttributeError):
        return
    for entry, own in zip(index["tensors"], written["tensors"], strict=True):
        try:
            _settle_entry(spec, entry, own, data, tables, base)
        except (spec.Invalid, spec.Conflict, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error):
            continue
    settle_totals(index)


def _settle_entry(spec: Any, entry: dict[str, Any], own: dict[str, Any], data: bytes, tables: list[bytes], base: Mapping[str, Tensor]) -> None:
    before = None
    if "base" in entry:
        name, dtype, shape = spec.base_of(entry)
        if spec.pieces_of(entry):
            before = spec.arranged(own, base)
        elif name in base and (dtype, tuple(shape)) == (base[name][0], tuple(base[name][1])):
            before = base[name]
        if before is not None:
            entry["base"]["digest"] = own["base"]["digest"] = spec.tensor_digest(*before)
    if "dtype" not in own or not 0 <= spec.numel(own["dtype"], own["shape"]) <= MOST_ELEMENTS:
        return
    if entry["kind"] == "unchanged":
        entry["digest"] = entry["base"]["digest"]
        return
    part = spec.Part(0, data, own, 1.0, None, tables)
    with np.errstate(all="ignore"):
        if entry["kind"] in spec.WHOLE:
            found = entry["dtype"], tuple(entry["shape"]), spec.elements_of(part, before)
        elif before is not None:
            found = spec.combine([part], before, None, None)
        else:
            return
    entry["digest"] = spec.tensor_digest(*found)
    if isinstance(entry.get("digests"), Blob):
        entry["digests"] = Blob(b"".join(_chunk_digests(spec, tensor) for tensor in (before, found) if tensor is not None))


def _chunk_digests(spec: Any, tensor: Tensor) -> bytes:
    size, raw = spec.itemsize(tensor[0]), tensor[2]
    spans = spec.spans(len(raw) // size, spec.CHUNK)
    return b"".join(xxhash.xxh3_128_digest(raw[start * size : stop * size]) for start, stop in spans)


def settle_files(index: Any, files: Mapping[str, bytes]) -> None:
    """State size and SHA-256 of what the blobs of side files hold, and of the base's files that they refer to."""
    spec = reference_decoder()
    rows = [row for key in ("files", "containers") for row in (index.get(key) or []) if isinstance(index.get(key), list)]
    for row in (row for row in rows if isinstance(row, dict) and isinstance(row.get("blob"), Blob)):
        try:
            before = files.get(row["name"]) if "base" in row else None
            if before is not None:
                row["base"] = hashlib.sha256(before).hexdigest()
            stored = row["blob"].data
            if stored[:4] == b"\x28\xb5\x2f\xfd":
                size = spec.zstandard.frame_content_size(stored)
                content = spec.unzstd(stored, size, before) if 0 < size < MOST_ELEMENTS else None
            else:
                content = stored
            if content is not None:
                row |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        except (spec.Invalid, spec.zstandard.ZstdError, ValueError, TypeError, KeyError):
            continue
