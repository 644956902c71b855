"""What the index of a pack says, as frozen records. Implements spec/03-index.md sections 3.2 to 3.7.

`Index.to_json` and `deltapack.format.parsing.parse_index` are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltapack.dtypes import BY_NAME, DType
from deltapack.format.arrangement import BaseRef
from deltapack.format.blobs import EXACT, BlobRef, ExactStep
from deltapack.format.digest import CHUNK, chunk_count
from deltapack.format.terms import Term, bits_of_f32, f32_of_bits

__all__ = ["BaseRef", "BlobRef", "Entry", "ExactStep", "FileEntry", "Index", "Stats", "Term", "bits_of_f32", "f32_of_bits"]

KINDS = frozenset({"alias", "delta", EXACT, "grown", "removed", "shrunk", "stored", "unchanged"})


@dataclass(frozen=True)
class Stats:
    """L1 norm and largest magnitude of the dense difference, before dropping; decimal strings."""

    l1: str
    max_abs: str


@dataclass(frozen=True)
class Entry:
    """One tensor. Fields that its kind does not have are empty, `None` or `()`."""

    name: str
    kind: str
    dtype: DType = BY_NAME["u8"]
    shape: tuple[int, ...] = ()
    digest: str = ""
    base: BaseRef | None = None
    terms: tuple[Term, ...] = ()
    stored: BlobRef | None = None
    digests: BlobRef | None = None
    stats: Stats | None = None
    of: str = ""
    exact: tuple[ExactStep, ...] = ()

    @property
    def in_result(self) -> bool:
        """Whether the restored checkpoint holds this tensor (aliases and removed tensors are not held)."""
        return self.kind not in ("alias", "removed")

    @property
    def numel(self) -> int:
        """Number of elements of the result; of a raw type, of bytes."""
        return self.dtype.count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return self.numel * self.dtype.itemsize if self.in_result else 0

    @property
    def common(self) -> int:
        """Number of leading elements that are base plus terms."""
        if self.base is None or self.kind in ("removed", "stored", EXACT):
            return 0
        return min(self.numel, self.base.numel)

    @property
    def partner(self) -> BaseRef | None:
        """The base tensor that an exact entry's first step starts from; none where it is only replaced (spec/03-index.md 3.12)."""
        base = self.base
        if self.kind != EXACT or base is None:
            return None
        rows = len(base.shape) == len(self.shape) >= 1 and base.shape[1:] == self.shape[1:]
        types = base.dtype == self.dtype or (base.dtype.is_delta and self.dtype.is_delta)
        return base if types and (rows or base.shape == self.shape) else None

    @property
    def needs_digests(self) -> bool:
        """Whether the entry must have a `digests` blob."""
        # An exact tensor that starts from the base cannot be checked without it, and with it the roots are enough.
        if self.kind not in ("delta", EXACT, "grown", "shrunk", "stored") or self.partner is not None:
            return False
        return max(self.numel, self.base.numel if self.base else 0) > CHUNK

    @property
    def digests_length(self) -> int:
        """Bytes of its `digests` blob."""
        return 16 * (chunk_count(self.numel) + (chunk_count(self.base.numel) if self.base else 0))

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Its blobs in file order."""
        rest = (self.stored, *(step.blob for step in self.exact), self.digests)
        return (*(blob for term in self.terms for blob in term.blobs), *(blob for blob in rest if blob is not None))

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the index spells it."""
        out: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "alias":
            return out | {"of": self.of}
        if self.kind != "removed":
            out |= {"dtype": self.dtype.name, "shape": list(self.shape), "digest": self.digest}
        if self.base is not None:
            out["base"] = self._base_json(self.base)
        if self.kind in ("delta", "grown", "shrunk"):
            out["terms"] = [term.to_json() for term in self.terms]
        if self.stored is not None:
            out["stored"] = self.stored.to_json()
        if self.exact:
            out["exact"] = [step.to_json() for step in self.exact]
        if self.digests is not None:
            out["digests"] = self.digests.to_json()
        if self.stats is not None:
            out["stats"] = {"l1": self.stats.l1, "max_abs": self.stats.max_abs}
        return out

    def _base_json(self, base: BaseRef) -> dict[str, Any]:
        out: dict[str, Any] = {"digest": base.digest}
        removed = self.kind == "removed"
        if base.name != self.name:
            out["name"] = base.name
        if removed or base.dtype != self.dtype:
            out["dtype"] = base.dtype.name
        if removed or base.shape != self.shape:
            out["shape"] = list(base.shape)
        return out if base.arranged is None else out | base.arranged.to_json()


@dataclass(frozen=True)
class FileEntry:
    """A side file; `blob` is `None` where the base has the same file.

    `base` is the SHA-256 of the base's file of that name, which `blob` refers to; empty where it stands for itself.
    """

    name: str
    size: int
    sha256: str
    blob: BlobRef | None = None
    base: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry as the index spells it."""
        out: dict[str, Any] = {"name": self.name, "size": self.size, "sha256": self.sha256}
        out |= {} if self.blob is None else {"blob": self.blob.to_json()}
        return out | ({"base": self.base} if self.base else {})


@dataclass(frozen=True)
class Index:
    """Everything a pack says about itself.

    `files` is `None` where the fine-tune was a bare file. `folders` has its sub-folders with weights, and the name of the weight file
    in each, without suffix. `containers` are the heads of its weight files (3.13). `tables` are those that chunks of exact entries share.
    """

    base_fingerprint: str
    base_tensors: int
    result_fingerprint: str
    result_tensors: int
    result_bytes: int
    recipe: Mapping[str, Any]
    entries: tuple[Entry, ...]
    files: tuple[FileEntry, ...] | None = None
    created_by: str = ""
    required: tuple[str, ...] = ()
    optional: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[BlobRef, ...] = ()
    containers: tuple[FileEntry, ...] = ()

    @property
    def pieces(self) -> frozenset[str]:
        """Names of the base's tensors that arranged ones are made of."""
        bases = (entry.base for entry in self.entries if entry.base is not None)
        return frozenset(name for base in bases if base.arranged is not None for name in base.arranged.names)

    @property
    def telling(self) -> tuple[Entry, ...]:
        """Entries but for `removed` ones of tensors that arranged ones are made of: these are in the result all the same."""
        pieces = self.pieces
        return tuple(entry for entry in self.entries if not (entry.kind == "removed" and entry.name in pieces))

    @property
    def is_exact(self) -> bool:
        """Whether nothing of the fine-tune's tensors is lost: no difference was dropped from or quantised."""
        return not any(entry.terms for entry in self.entries)

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """All blobs in file order."""
        files = tuple(file.blob for file in (*(self.files or ()), *self.containers) if file.blob is not None)
        return tuple(blob for entry in self.entries for blob in entry.blobs) + files + self.tables

    def to_json(self) -> dict[str, Any]:
        """Return the document of spec/03-index.md section 3.2."""
        out: dict[str, Any] = {
            "format": "dpk",
            "required": list(self.required),
            "created_by": self.created_by,
            "base": {"fingerprint": self.base_fingerprint, "tensors": self.base_tensors},
            "result": {
                "fingerprint": self.result_fingerprint,
                "tensors": self.result_tensors,
                "bytes": self.result_bytes,
            },
            "recipe": dict(self.recipe),
            "tensors": [entry.to_json() for entry in self.entries],
            "files": None if self.files is None else [file.to_json() for file in self.files],
        }
        out |= {"folders": dict(self.folders)} if self.folders else {}
        out |= {"containers": [container.to_json() for container in self.containers]} if self.containers else {}
        out |= {"tables": [blob.to_json() for blob in self.tables]} if EXACT in self.required else {}
        return out | ({"optional": dict(self.optional)} if self.optional else {})
