"""A pack as a mapping from tensor names to entries, for notebooks and other programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.chunk import decode_term_chunk, term_chunks
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.codecs.stored import decode_stored, stored_chunks
from deltapack.errors import RecipeError
from deltapack.format.digest import CHUNK
from deltapack.format.identity import content_of
from deltapack.format.index import BlobRef, Entry, Index
from deltapack.format.reader import PackReader
from deltapack.kernels import rounding
from deltapack.limits import DEFAULT_LIMITS, Limits
from deltapack.packs.patching import LoadedPack, add_to
from deltapack.parallel import resolve_workers

if TYPE_CHECKING:
    import scipy.sparse
    import torch

    from deltapack.device.resident import ResidentPack

from deltapack import kernels

__all__ = ["Pack", "PackEntry", "open_pack"]


def open_pack(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Pack:
    """Open a pack; use it as a context manager and as a mapping of tensor names to `PackEntry`.

    Args:
        path: The file.
        limits: What it may ask of this process; wider than usual only for files that you trust.

    Raises:
        FormatError: It is damaged or not a pack.
        UnsupportedError: It needs a newer deltapack.
    """
    return Pack(PackReader(path, limits))


class Pack(Mapping[str, "PackEntry"]):
    """An open pack. Nothing is decoded before an entry is asked for its elements.

    Attributes:
        path: The file.
        index: Everything it says about itself.
        id: SHA-256 of its index, which covers every byte through checksums; tells packs apart.
        content_id: SHA-256 of what it restores, tensors and files, alone and with weight 1: the same for every pack, and every way of
            packing, that gives the same bits.
    """

    def __init__(self, reader: PackReader) -> None:
        self._reader = reader
        self._entries = {entry.name: entry for entry in reader.index.entries}
        self.path: Path = reader.path
        self.index: Index = reader.index
        self.id: str = reader.pack_id
        self.content_id: str = content_of(reader.index)

    def __getitem__(self, name: str) -> PackEntry:
        return PackEntry(self._reader, self._entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pack {self.path} with {len(self)} tensors>"

    def add_to(self, state: MutableMapping[str, Any], *, weight: float = 1.0, verify: bool = True, workers: int | None = None) -> None:
        """Turn the base's tensors into the fine-tune's, in the memory where they are.

        Args:
            state: The base: from name to numpy array in the storage type of `deltapack.dtypes` (bf16 as `uint16`) or torch tensor on
                the CPU, contiguous. Tensors that the pack stores whole are put in anew, removed ones are
                taken out.
            weight: Factor for the whole difference.
            verify: Whether the base is checked against the pack before anything is changed and, with a weight of 1, the result after.
            workers: Threads; every core unless given.

        Raises:
            BaseMismatchError: The state is not the base of the pack; nothing was changed.
            FormatError: The pack is damaged; where its index and tables are sound, the state may be changed in part.
            RecipeError: A tensor cannot be changed in place: it grows, changes its type or name, or is not contiguous.
        """
        add_to(self._reader, state, weight=weight, verify=verify, workers=workers)

    def load(self) -> LoadedPack:
        """Read and decompress the terms of the pack, for states that are patched again and again; the pack must stay open.

        Exact tensors are read and decoded each time: what they become depends on the state.

        Raises:
            FormatError: It is damaged.
        """
        return LoadedPack.of(self._reader)

    def to(self, device: str | torch.device, workers: int | None = None) -> ResidentPack:
        """Send the terms to a device in the form in which they are decoded there, in large pieces, while later ones are decompressed.

        Args:
            device: Such as `"cuda"`.
            workers: Threads; every core unless given.

        Returns:
            What is on the device, with the bytes that were sent.

        Raises:
            BackendError: There is no such device here.
            FormatError: The pack is damaged.
        """
        from deltapack.device.backends import resolve_device
        from deltapack.device.resident import send

        return send(self._reader, resolve_device(device), resolve_workers(workers))

    def close(self) -> None:
        """Close the file; entries can no longer be decoded."""
        self._reader.close()


class PackEntry:
    """One tensor of a pack.

    The sparse views hold the *difference* that the pack adds to the base, rescaled as `apply` would add it. A tensor of kind `exact` has
    none: it is coded after the elements of the base, which are not here.
    """

    def __init__(self, reader: PackReader, entry: Entry) -> None:
        self._reader = reader
        self.entry = entry

    def __repr__(self) -> str:
        return f"<PackEntry {self.name} {self.kind} {self.dtype} {list(self.shape)} nnz={self.nnz}>"

    @property
    def name(self) -> str:
        """Name in the restored checkpoint."""
        return self.entry.name

    @property
    def kind(self) -> str:
        """One of delta, unchanged, exact, stored, grown, shrunk, removed, alias."""
        return self.entry.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the restored tensor."""
        return self.entry.shape

    @property
    def dtype(self) -> str:
        """Type of the restored tensor, such as `"bf16"`."""
        return self.entry.dtype.name

    @property
    def nnz(self) -> int:
        """Kept elements, over all terms; 0 of what is stored or coded exactly, which has no terms, however much of it changed."""
        return sum(term.nnz for term in self.entry.terms)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return sum(blob.length for blob in self.entry.blobs)

    def to_sparse(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return flat positions `[nnz] int64`, increasing, and the differences `[nnz] f32` that are added there.

        Raises:
            FormatError: The pack is damaged.
            RecipeError: The entry is no difference (stored, exact, removed or alias).
        """
        if self.kind not in ("delta", "unchanged", "grown", "shrunk"):
            raise self._no_difference()
        entry, parts = self.entry, []
        blobs = [(term, term_chunks(self._reader, entry, term)) for term in entry.terms]
        for chunk in range(blobs[0][1].layout.chunks if blobs else 0):
            terms = [decode_term_chunk(blob, term, chunk, np.float32(term.factor)) for term, blob in blobs]
            positions, values = kernels.active().sum_terms(blobs[0][1].layout.chunk_length(chunk), terms)
            parts.append((positions.astype(np.int64) + chunk * CHUNK, values))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def to_dense(self) -> NDArray[np.generic]:
        """Return the difference as a dense f32 array of the entry's shape; of a stored tensor, its elements.

        Rows that grew hold their difference to zero, which is what is stored. Elements of a stored tensor come in the storage type of
        `deltapack.dtypes` (bf16 and float8 as unsigned integers); those of a raw type that is no byte wide as `[bytes] uint8`.

        Raises:
            FormatError: The pack is damaged.
            RecipeError: The tensor is removed or an alias, or coded exactly after the base's, which is not at hand here.
        """
        if self.kind == "exact" and self.entry.partner is None:
            return self._shaped(ExactTensor.of(self._reader, self.entry).read(0, self.entry.numel))
        if self.kind == "stored" and self.entry.stored is not None:
            return self._shaped(self._rows(self.entry.stored))
        positions, values = self.to_sparse()
        dense = np.zeros(self.entry.numel, np.float32)
        dense[positions] = values
        if self.entry.stored is not None:
            dense[self.entry.common :] = rounding.to_f32(self._rows(self.entry.stored), self.entry.dtype)
        return dense.reshape(self.shape)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Return the difference as a CSR matrix `[shape[0], rest]` of f32; tensors of rank 0 or 1 become one row.

        Raises:
            FormatError: The pack is damaged.
            RecipeError: The entry is no difference.
        """
        import scipy.sparse

        positions, values = self.to_sparse()
        rows = self.shape[0] if len(self.shape) > 1 else 1
        columns = self.entry.numel // rows if rows else 0
        starts = np.searchsorted(positions, np.arange(rows + 1, dtype=np.int64) * columns)
        return scipy.sparse.csr_array((values, positions % max(columns, 1), starts), shape=(rows, columns))

    def to_torch_sparse(self) -> torch.Tensor:
        """Return the difference as a coalesced torch sparse COO tensor of the entry's shape, f32, on the CPU.

        Raises:
            FormatError: The pack is damaged.
            RecipeError: The entry is no difference.
        """
        import torch

        positions, values = self.to_sparse()
        indices = np.stack(np.unravel_index(positions, self.shape)) if self.shape else np.zeros((0, len(values)))
        return torch.sparse_coo_tensor(
            torch.from_numpy(indices.astype(np.int64)),
            torch.from_numpy(values),
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    def _no_difference(self) -> RecipeError:
        """Return the error for a kind that holds no difference, with what there is to do instead."""
        if self.entry.partner is not None:
            what = "an exact tensor holds no difference: it is decoded from the elements of the base, which are not at hand here"
            hint = (
                "Pack.add_to turns the base's tensor in memory into this one, deltapack.apply a whole checkpoint; subtract what you need."
            )
        else:
            what = f"a tensor of kind {self.kind} has no difference"
            hint = "to_dense() gives its elements." if self.kind in ("stored", "exact") else "It holds no elements of its own."
        return RecipeError(what, path=self._reader.path, tensor=self.name, hint=hint)

    def _shaped(self, elements: NDArray[np.generic]) -> NDArray[np.generic]:
        return elements.reshape(self.shape if math.prod(self.shape) == len(elements) else -1)

    def _rows(self, stored: BlobRef) -> NDArray[np.generic]:
        return decode_stored(stored_chunks(self._reader, self.entry, stored), self.entry.dtype)
