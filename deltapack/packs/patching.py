"""Use case: base tensors in memory + pack -> the fine-tune's tensors, in the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltapack.codecs.adding import OneTerm, add_terms
from deltapack.codecs.chunk import LoadedChunks, TermChunks, load_term_chunks, term_chunks
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.stored import decode_stored, stored_chunks
from deltapack.composing.basecheck import wrong_base, wrong_result
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import BY_TORCH
from deltapack.errors import BaseMismatchError, RecipeError
from deltapack.format.arrangement import Arrangement
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.index import BaseRef, Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.parallel import for_each, resolve_workers

__all__ = ["LoadedPack", "add_to"]

Terms = tuple[tuple[Term, TermChunks | FactorChunks], ...]


@dataclass(frozen=True)
class LoadedPack:
    """A pack whose streams are decompressed and held in memory, for bases that are patched again and again.

    Attributes:
        reader: The pack; it must stay open.
        terms: The terms of each tensor that changes, by name.
        nbytes: Bytes of the streams in memory.
    """

    reader: PackReader
    terms: Mapping[str, Terms]
    nbytes: int

    @classmethod
    def of(cls, reader: PackReader) -> LoadedPack:
        """Decompress every term of a pack.

        Raises:
            FormatError: The pack is damaged.
        """
        loaded: dict[str, tuple[tuple[Term, LoadedChunks | FactorChunks], ...]] = {
            entry.name: tuple((term, load_term_chunks(blob, term)) for term, blob in _terms(reader, entry))
            for entry in reader.index.entries
        }
        nbytes = sum(chunks.nbytes for terms in loaded.values() for _, chunks in terms)
        return cls(reader, loaded, nbytes)

    def add_to(self, state: MutableMapping[str, Any], *, weight: float = 1.0, verify: bool = True, workers: int | None = None) -> None:
        """Turn the base's tensors into the fine-tune's; see `deltapack.packs.pack.Pack.add_to`."""
        _add_to(self.reader, self.terms, state, weight, verify, workers)


def add_to(reader: PackReader, state: MutableMapping[str, Any], *, weight: float, verify: bool, workers: int | None) -> None:
    """Turn the base's tensors into the fine-tune's; see `deltapack.packs.pack.Pack.add_to`."""
    terms = {entry.name: tuple(_terms(reader, entry)) for entry in reader.index.entries}
    _add_to(reader, terms, state, weight, verify, workers)


def _terms(reader: PackReader, entry: Entry) -> Iterator[tuple[Term, TermChunks | FactorChunks]]:
    for term in entry.terms:
        yield term, term_chunks(reader, entry, term)


def _exact(reader: PackReader, entry: Entry) -> ExactTensor | None:
    return ExactTensor.of(reader, entry) if entry.kind == "exact" else None


@dataclass(frozen=True)
class _Held:
    """A tensor of the state: what the pack says of it, the base tensor that it must be, its elements in memory, flat."""

    entry: Entry
    base: BaseRef
    elements: Elements


@dataclass(frozen=True)
class _Patch:
    """One tensor that changes: what to add and the factors of that, or what it becomes."""

    held: _Held
    terms: Terms
    factors: tuple[np.float32, ...]
    exact: ExactTensor | None = None


def _add_to(
    reader: PackReader,
    terms: Mapping[str, Terms],
    state: MutableMapping[str, Any],
    weight: float,
    verify: bool,
    workers: int | None,
) -> None:
    pack, count, buffers = WeightedPack(reader, weight), resolve_workers(workers), Buffers()
    pieces = reader.index.pieces  # a state may hold what is made of them instead
    tensors = [
        _Held(entry, entry.base, _elements_of(state, entry, entry.base, weight, reader.path))
        for entry in reader.index.entries
        if entry.base is not None and (entry.name in state or entry.name not in pieces)
    ]
    _check_names(state, reader)
    # A square matrix that lies the other way round has the shape that is wanted: only its digest tells.
    _check_base([held for held in tensors if verify or held.base.arranged is not None], reader.path, count)
    patches = [
        _Patch(held, terms[held.entry.name], tuple(pack.factor(term, weight) for term in held.entry.terms), _exact(reader, held.entry))
        for held in tensors
        if held.entry.partner is not None or (held.entry.kind == "delta" and held.entry.terms)
    ]
    tasks = [(patch, chunk) for patch in patches for chunk in range(chunk_count(patch.held.entry.numel))]
    digests = [b""] * len(tasks) if verify and pack.is_plain else None

    def work(number: int) -> None:
        patch, chunk = tasks[number]
        part = patch.held.elements[chunk * CHUNK : (chunk + 1) * CHUNK]
        _add_chunk(patch, chunk, part, buffers)
        if digests is not None:  # now, while the elements are in the cache
            digests[number] = chunk_digest(part)

    for_each(work, range(len(tasks)), count)
    for entry in reader.index.entries:
        if entry.kind == "stored" and entry.stored is not None:
            state[entry.name] = decode_stored(stored_chunks(reader, entry, entry.stored), entry.dtype).reshape(entry.shape)
        elif entry.kind == "exact" and entry.partner is None:
            state[entry.name] = ExactTensor.of(reader, entry).read(0, entry.numel).reshape(entry.shape)
        elif entry.kind == "removed":
            state.pop(entry.name, None)
    if digests is not None:
        hint = "The state is changed and must not be used; the pack was made by a faulty writer or altered."
        changed = [patch.held for patch in patches]
        for held, found in zip(changed, _roots(changed, digests), strict=True):
            if found != held.entry.digest:
                raise wrong_result(reader.path, held.entry.name, held.entry.digest, found, hint)


def _add_chunk(patch: _Patch, chunk: int, elements: Elements, buffers: Buffers) -> None:
    """Add all terms of a tensor to the elements of one of its chunks."""
    dtype, scratch = patch.held.entry.dtype, buffers.scratch(len(elements))
    if patch.exact is not None:
        elements[:] = patch.exact.part(chunk, elements, dtype)
        return
    terms = [OneTerm(chunks, term, factor) for (term, chunks), factor in zip(patch.terms, patch.factors, strict=True)]
    add_terms(terms, chunk, elements, dtype, scratch)


def _elements_of(state: MutableMapping[str, Any], entry: Entry, base: BaseRef, weight: float, path: Path) -> Elements:
    """Return the elements of the base tensor of an entry, flat, in the memory that `state` holds.

    Raises:
        BaseMismatchError: There is none, or it has another shape or type.
        RecipeError: It cannot be changed in place.
    """
    name = entry.name
    moved = (base.dtype, base.shape) != (entry.dtype, entry.shape) and (entry.kind == "delta" or entry.partner is not None)
    if entry.kind in ("grown", "shrunk") or moved or base.name != name:
        what = f"a tensor of kind {entry.kind} changes its shape, type or name and cannot be patched in place"
        raise RecipeError(what, path=path, tensor=name, hint="Use deltapack.apply.")
    if entry.kind in ("exact", "stored") and weight != 1 and base.dtype.is_delta and base.shape == entry.shape:
        what = "a tensor that is stored whole or coded exactly cannot be weighted in place"
        raise RecipeError(what, path=path, tensor=name, hint="Use deltapack.apply.")
    array = _array_of(state.get(name))
    if array is None or array.shape != base.dtype.torch_shape(base.shape) or array.dtype != np.dtype(base.dtype.storage):
        raise BaseMismatchError(
            "the state does not hold the base tensor that the pack was made from",
            path=path,
            tensor=name,
            expected=f"{base.dtype} {list(base.shape)}, as a numpy array of {base.dtype.storage} or a torch tensor on the CPU",
            found="no such array" if array is None else f"{array.dtype} {list(array.shape)}",
            rule="R11",
            hint="" if base.arranged is None else f"{name!r} is made of {_made_of(base.arranged)}: hold it so, or use deltapack.apply.",
        )
    if (entry.terms or entry.partner is not None) and not (array.flags.c_contiguous and array.flags.writeable):
        raise RecipeError("the tensor is not contiguous or not writable", path=path, tensor=name, hint="Give a contiguous copy.")
    return array.reshape(-1)


def _made_of(arranged: Arrangement) -> str:
    names = arranged.names
    return f"the base's {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _array_of(tensor: Any) -> Elements | None:
    """Return a numpy array as it is, a torch tensor on the CPU as an array over its memory, else none."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if not hasattr(tensor, "untyped_storage") or tensor.device.type != "cpu":
        return None
    import torch

    dtype = BY_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        return None
    ints = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    array: Elements = tensor.detach().view(ints).numpy().view(dtype.storage)
    return array


def _check_names(state: MutableMapping[str, Any], reader: PackReader) -> None:
    """Refuse a state with tensors that would silently stay what they are.

    Raises:
        BaseMismatchError: It holds a tensor that the pack does not know: it is another model.
        RecipeError: A tensor that is tied to another in the pack has its own memory.
    """
    known = {entry.name: entry for entry in reader.index.entries}
    for name in state:
        if name not in known:
            expected, found = f"{len(known)} tensors", f"{len(state)} tensors, this one is not in the pack"
            what = "the state holds a tensor that the pack does not know"
            raise BaseMismatchError(what, path=reader.path, tensor=name, expected=expected, found=found, rule="R11")
        entry = known[name]
        if entry.kind == "alias":
            own, other = _array_of(state[name]), _array_of(state.get(entry.of))
            if own is None or other is None or own.ctypes.data != other.ctypes.data:
                what = f"the tensor is tied to {entry.of!r} in the pack, but has its own memory in the state"
                raise RecipeError(what, path=reader.path, tensor=name, hint="Remove it from the state, or make it the same array.")


def _check_base(tensors: Sequence[_Held], path: Path, workers: int) -> None:
    parts = [held.elements[start : start + CHUNK] for held in tensors for start in range(0, len(held.elements), CHUNK)]
    digests = [b""] * len(parts)

    def work(number: int) -> None:
        digests[number] = chunk_digest(parts[number])

    for_each(work, range(len(parts)), workers)
    hint = "Nothing was changed. A state that was patched already is no longer the base."
    for held, found in zip(tensors, _roots(tensors, digests), strict=True):
        if found != held.base.digest:
            raise wrong_base(path, held.entry.name, held.base.digest, found, hint)


def _roots(tensors: Sequence[_Held], digests: Sequence[bytes]) -> list[str]:
    """Return the root digests of base tensors, or of tensors of their type and shape, from those of all their chunks."""
    roots, start = [], 0
    for held in tensors:
        stop = start + chunk_count(held.base.numel)
        roots.append(root_digest(held.base.dtype.name, held.base.shape, digests[start:stop]))
        start = stop
    return roots
