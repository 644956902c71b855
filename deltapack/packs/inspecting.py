"""Use case: what a pack says of itself. Reads the index alone, and needs neither numpy nor torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltapack.format.blobs import EXACT
from deltapack.format.codecs import FACTORS
from deltapack.format.containers import restored_weight_files
from deltapack.format.identity import content_of
from deltapack.format.index import Entry, Index
from deltapack.format.reader import PackReader
from deltapack.packing.roles import ROLES, roles_of

__all__ = ["FileSummary", "PackSummary", "TensorSummary", "inspect_pack"]


@dataclass(frozen=True)
class FileSummary:
    """A side file: its size in bytes, and the bytes it takes in the pack, `None` where the base has the same file."""

    name: str
    size: int
    stored_bytes: int | None


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a pack.

    Attributes:
        name: Its name in the result; of a removed tensor, in the base.
        kind: Entry kind.
        role: Its role by its name (`deltapack.packing.roles`), whatever the recipe made of it; but `exact` where a tensor of which a
            difference could be kept is coded exactly after the base's. `None` where the result does not hold it.
        dtype: Element type of the result; `None` where the result does not hold it (alias, removed).
        shape: Shape of the result, likewise `()`.
        base_name: The base tensor it starts from, if any.
        base_parts: The base tensors that this one is made of, where the base holds it in another layout (fused, split, transposed).
        of: Of an alias, the tensor it is tied to.
        elements: Elements that were dropped from.
        nnz: Elements that were kept, over all its terms; one of low rank keeps all.
        index_codecs: Index codec of each term.
        value_codecs: Value codec of each term.
        factors: Rescale of each term.
        max_abs_delta: Largest |fine-tuned - base|, where the pack tells.
        stored_bytes: Bytes of all its blobs.
    """

    name: str
    kind: str
    role: str | None
    dtype: str | None
    shape: tuple[int, ...]
    base_name: str | None
    base_parts: tuple[str, ...]
    of: str | None
    elements: int
    nnz: int
    index_codecs: tuple[str, ...]
    value_codecs: tuple[str, ...]
    factors: tuple[float, ...]
    max_abs_delta: float | None
    stored_bytes: int

    @property
    def low_rank_elements(self) -> int:
        """Elements of its terms of low rank, which keep all of them and none by itself."""
        return self.elements * self.value_codecs.count(FACTORS.name)


@dataclass(frozen=True)
class PackSummary:
    """A pack, from its index. Sizes in bytes.

    Attributes:
        path: The file.
        id: SHA-256 of its index, 64 hexadecimal digits.
        content_id: SHA-256 of what it restores, tensors and files (`Pack.content_id`).
        created_by: Name and version of the writer.
        base_fingerprint: Of the base checkpoint.
        base_tensors: Number of its tensors.
        result_fingerprint: Of the checkpoint that the pack restores.
        result_tensors: Number of its tensors, aliases not counted.
        recipe: How the pack was made; informative.
        pack_bytes: Size of the file.
        checkpoint_bytes: Size of the restored tensors.
        delta_elements: Elements of the tensors that were dropped from.
        nnz: Elements that were kept, likewise.
        delta_bits_per_weight: Everything in the pack but stored and exact tensors and side files, in bits per such element.
        split: Stored bytes by use: terms, stored, exact, digests, files (with heads of weight files), header.
        kinds: Number of tensors of each entry kind; what arranged tensors are made of is not removed.
        index_codecs: Number of terms of each index codec.
        value_codecs: Number of terms of each value codec.
        max_abs_delta: Largest |fine-tuned - base|, where the pack tells.
        files: The side files.
        tensors: The tensors, by name.
        weight_files: Number of weight files that are restored byte for byte, headers and all.
        heads: Their names and those of their indices, as far as they stand in the pack or are left by it to the base.
        exact_elements: Elements of tensors that are coded exactly.
        exact_bits_per_element: What these take in the pack, with the tables that they share, in bits for each.
    """

    path: Path
    id: str
    content_id: str
    created_by: str
    base_fingerprint: str
    base_tensors: int
    result_fingerprint: str
    result_tensors: int
    recipe: Mapping[str, Any]
    pack_bytes: int
    checkpoint_bytes: int
    delta_elements: int
    nnz: int
    delta_bits_per_weight: float
    split: Mapping[str, int]
    kinds: Mapping[str, int]
    index_codecs: Mapping[str, int]
    value_codecs: Mapping[str, int]
    max_abs_delta: float | None
    files: tuple[FileSummary, ...]
    tensors: tuple[TensorSummary, ...]
    weight_files: int = 0
    heads: tuple[str, ...] = ()
    exact_elements: int = 0
    exact_bits_per_element: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than the restored tensors."""
        return self.checkpoint_bytes / self.pack_bytes

    @property
    def density(self) -> float:
        """Kept elements per element that was dropped from, in a merged pack on average over its terms; 0 where there is none."""
        return self.nnz / self.term_elements if self.term_elements else 0.0

    @property
    def low_rank_elements(self) -> int:
        """Elements of all terms of low rank."""
        return sum(tensor.low_rank_elements for tensor in self.tensors)

    @property
    def term_elements(self) -> int:
        """Elements that were dropped from, once for each term: a merged pack has a term for each pack that changes a tensor."""
        return sum(tensor.elements * len(tensor.factors) for tensor in self.tensors)

    def to_json(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return the summary as JSON-ready values, with the list of tensors or without."""
        out = asdict(self) | {"path": str(self.path), "ratio": self.ratio, "density": self.density}
        if not tensors:
            del out["tensors"]
        return out


def inspect_pack(path: str | Path) -> PackSummary:
    """Return what the index of a pack says.

    Checks the header, the index and the layout of the file, not the data: `deltapack.verify` does that.

    Args:
        path: The pack.

    Raises:
        FormatError: The file is not a pack, or is damaged.
        UnsupportedError: It needs a newer version.
        LimitError: Its index is over a limit.
    """
    with PackReader(path) as reader:
        index, pack_bytes, pack_id = reader.index, reader.file_bytes, reader.pack_id
    roles = roles_of({entry.name: entry for entry in index.entries if entry.in_result})
    tensors = tuple(_tensor(entry, _role(entry, roles.get(entry.name))) for entry in index.entries)
    split = _split(index, pack_bytes)
    exact = sum(entry.numel for entry in index.entries if entry.kind == EXACT)
    elements = sum(tensor.elements for tensor in tensors)
    counted = pack_bytes - split["stored"] - split["exact"] - split["files"]
    deltas = [tensor.max_abs_delta for tensor in tensors if tensor.max_abs_delta is not None]
    return PackSummary(
        path=reader.path,
        id=pack_id,
        content_id=content_of(index),
        created_by=index.created_by,
        base_fingerprint=index.base_fingerprint,
        base_tensors=index.base_tensors,
        result_fingerprint=index.result_fingerprint,
        result_tensors=index.result_tensors,
        recipe=index.recipe,
        pack_bytes=pack_bytes,
        checkpoint_bytes=index.result_bytes,
        delta_elements=elements,
        nnz=sum(tensor.nnz for tensor in tensors),
        delta_bits_per_weight=8 * counted / elements if elements else 0.0,
        split=split,
        kinds=_count(entry.kind for entry in index.telling),
        index_codecs=_count(codec for tensor in tensors for codec in tensor.index_codecs),
        value_codecs=_count(codec for tensor in tensors for codec in tensor.value_codecs),
        max_abs_delta=max(deltas, default=None),
        files=tuple(FileSummary(file.name, file.size, file.blob.length if file.blob else None) for file in index.files or ()),
        tensors=tensors,
        weight_files=restored_weight_files(index.containers),
        heads=tuple(head.name for head in index.containers),
        exact_elements=exact,
        exact_bits_per_element=8 * split["exact"] / exact if exact else 0.0,
    )


def _tensor(entry: Entry, role: str | None) -> TensorSummary:
    arranged = entry.base.arranged if entry.base is not None else None
    return TensorSummary(
        name=entry.name,
        kind=entry.kind,
        role=role,
        dtype=entry.dtype.name if entry.in_result else None,
        shape=entry.shape if entry.in_result else (),
        base_name=entry.base.name if entry.base is not None and arranged is None else None,
        base_parts=() if arranged is None else arranged.names,
        of=entry.of or None,
        elements=entry.common if entry.terms else 0,
        nnz=sum(term.nnz for term in entry.terms),
        index_codecs=tuple(term.index for term in entry.terms),
        value_codecs=tuple(term.values for term in entry.terms),
        factors=tuple(term.factor for term in entry.terms),
        max_abs_delta=_finite(entry.stats.max_abs) if entry.stats is not None else None,
        stored_bytes=sum(blob.length for blob in entry.blobs),
    )


def _role(entry: Entry, by_name: str | None) -> str | None:
    is_exact = entry.partner is not None and entry.kind == EXACT and by_name is not None and ROLES[by_name].route != "exact"
    return "exact" if is_exact else by_name


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _split(index: Index, pack_bytes: int) -> dict[str, int]:
    entries = index.entries
    parts = {
        "terms": sum(blob.length for entry in entries for term in entry.terms for blob in term.blobs),
        "stored": sum(entry.stored.length for entry in entries if entry.stored is not None),
        "exact": sum(step.blob.length for entry in entries for step in entry.exact) + sum(blob.length for blob in index.tables),
        "digests": sum(entry.digests.length for entry in entries if entry.digests is not None),
        "files": sum(file.blob.length for file in (*(index.files or ()), *index.containers) if file.blob is not None),
    }
    return parts | {"header": pack_bytes - sum(parts.values())}


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
