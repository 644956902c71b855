"""Write a merge as a pack of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deltapack import kernels
from deltapack._version import __version__
from deltapack.checkpoint import Checkpoint, TensorInfo
from deltapack.codecs.chunk import TermCodec, encode_term_chunk
from deltapack.codecs.exact_entry import ExactTensor
from deltapack.codecs.indices import best_index
from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.composing.assets import check_base_files, copy_side_files
from deltapack.composing.compose import Composition
from deltapack.composing.metadata import result_metadata
from deltapack.composing.tensor_job import FromBase, FromPack, PackTerm, RowSource, Scratch, StoredRows, TensorJob
from deltapack.composing.weighted import WeightedPack
from deltapack.dtypes import DType
from deltapack.errors import LimitError, NonFiniteError, RecipeError
from deltapack.format.digest import CHUNK, chunk_digest, fingerprint, root_digest
from deltapack.format.features import features_of
from deltapack.format.index import BaseRef, BlobRef, Entry, FileEntry, Index, Term
from deltapack.format.metadata import optional_metadata
from deltapack.format.reader import PackReader
from deltapack.format.table import Layout
from deltapack.format.writer import ChunkedBlobWriter, PackWriter, StoredChunk
from deltapack.kernels.layout import Elements, Sparse
from deltapack.kernels.reference.positions import tile_counts
from deltapack.limits import DEFAULT_LIMITS
from deltapack.merging.blending import BlendedTerm, blended
from deltapack.merging.exact_entries import write_exact, write_whole
from deltapack.packing.metadata import carried_metadata
from deltapack.parallel import ordered_map
from deltapack.restoring.applying import WriteOptions
from deltapack.restoring.engine import Nowhere, RestoredTensor, restore_tensors, told_of

__all__ = ["MergedPack", "check_terms"]


def check_terms(jobs: Sequence[TensorJob]) -> None:
    """Check that the terms of each tensor may stand in one pack.

    Raises:
        LimitError: They are too many.
        RecipeError: The factor of one, times its weight, is beyond f32.
    """
    for job in jobs:
        for term in job.terms:
            if isinstance(term, PackTerm) and not np.isfinite(term.factor):
                raise RecipeError(
                    "a weight times the factor of the pack's values is not a finite f32, and a pack states only such",
                    path=term.reader.path,
                    tensor=job.name,
                    expected="a product below 3.4e38",
                    hint="Give a smaller weight.",
                )
        if len(job.terms) > DEFAULT_LIMITS.terms and all(isinstance(term, PackTerm) for term in job.terms):
            raise LimitError(
                "too many packs to merge into one pack",
                tensor=job.name,
                expected=f"at most {DEFAULT_LIMITS.terms} terms",
                found=len(job.terms),
                hint="Merge into a folder.",
            )


@dataclass(frozen=True)
class MergedPack:
    """Writes a merge as a pack: the weighted terms of all packs, or, where they are not merely added, what they become.

    Attributes:
        base: The base.
        packs: The packs.
        composition: What the result is made of.
        writer: The new pack.
        recipe: What the pack says of how it was made.
        options: How tensors are restored.
        own_files: Side files that only the merge has, by name.
        warnings: What `index` has to tell.
    """

    base: Checkpoint
    packs: Sequence[WeightedPack]
    composition: Composition
    writer: PackWriter
    recipe: Mapping[str, Any]
    options: WriteOptions
    own_files: Mapping[str, bytes]
    warnings: list[str] = field(default_factory=list)

    def index(self) -> Index:
        """Write all blobs and return the index.

        Raises:
            LimitError: A tensor has too many terms.
            RecipeError: A weight is too large.
        """
        check_terms(self.composition.jobs)
        check_base_files(self.base, self.composition.assets, verify=self.options.verify)
        restored = restore_tensors(
            self.base,
            [_recorded(job, self.writer) for job in self.composition.jobs],
            Nowhere(),
            verify=self.options.verify,
            digests=True,
            workers=self.options.workers,
            progress=self.options.progress,
            record=_recorded_of,
            finished=_write_recorded,
        )
        with closing(restored):
            pairs = [(tensor, self._entry(tensor)) for tensor in restored]
        self.warnings.extend(told_of([tensor for tensor, _ in pairs]))
        entries = [entry for _, entry in pairs]
        entries += [Entry(name, "alias", of=of) for name, of in self.composition.aliases.items()]
        entries += self._removed(entries)
        entries.sort(key=lambda entry: entry.name.encode())
        first = self.packs[0].reader.index
        result = [(entry.name, entry.dtype.name, entry.shape, entry.digest) for entry in entries if entry.in_result]
        files = self._files()
        metadata = result_metadata(self.base, self.composition.metadata, self.composition.folders, {})
        return Index(
            base_fingerprint=first.base_fingerprint,
            base_tensors=first.base_tensors,
            result_fingerprint=fingerprint(result),
            result_tensors=len(result),
            result_bytes=sum(entry.nbytes for entry in entries),
            recipe=self.recipe,
            entries=tuple(entries),
            files=files,
            created_by=f"deltapack {__version__}",
            required=features_of(entries, files, self.composition.folders),
            optional=optional_metadata(carried_metadata(metadata)[0]),
            folders=self.composition.folders,
        )

    def _removed(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return an entry for each tensor of the base that the packs know and the result does not use: a pack must cover all of them."""
        first = self.base.aliases
        said = {entry.base.name if entry.base is not None else entry.name for pack in self.packs for entry in pack.reader.index.entries}
        packed = {first.get(name, name) for name in said}
        known = {first.get(entry.base.name, entry.base.name) for entry in entries if entry.base is not None}
        known |= {entry.name for entry in entries}
        stated = [entry.base for pack in self.packs for entry in pack.reader.index.entries if entry.base is not None]
        digests = {first.get(base.name, base.name): base.digest for base in stated}
        return [
            Entry(name, "removed", base=BaseRef(name, info.dtype, info.shape, digests.get(name) or self._digest(info)))
            for name, info in self.base.tensors.items()
            if name not in known and name in packed
        ]

    def _digest(self, info: TensorInfo) -> str:
        """Return the root digest of a tensor of the base."""
        spans = ((start, min(start + CHUNK, info.numel)) for start in range(0, info.numel, CHUNK))
        return root_digest(info.dtype.name, info.shape, (chunk_digest(self.base.read(info.name, *span)) for span in spans))

    def _entry(self, restored: RestoredTensor) -> Entry:
        job, source = restored.job, restored.job.source
        entry = Entry(job.name, "stored", job.dtype, job.shape, restored.root)
        if isinstance(source, FromPack):
            rows, entry = source.rows, replace(entry, base=source.entry.base)
            if isinstance(rows, ExactTensor):
                entry = write_exact(self.writer, self.base, job, entry)
            else:
                entry = replace(entry, stored=self.writer.copy_blob(rows.reader, rows.ref))
            return self.writer.chunk_digests(entry, source.rows.reader.chunk_digests(source.entry)[0], restored.digests)
        base = source.base
        entry = replace(entry, base=BaseRef(base.name, base.dtype, base.shape, restored.base_root(base), base.arranged))
        if base.shape == job.shape and job.is_base:
            return replace(entry, kind="unchanged")
        entry = self._changed(entry, job, source)
        return self.writer.chunk_digests(entry, restored.base_digests, restored.digests)

    def _changed(self, entry: Entry, job: TensorJob, source: FromBase) -> Entry:
        """Return the entry of a tensor that is not the base's any more, with its kind and blobs."""
        if source.exact is not None:
            return write_exact(self.writer, self.base, job, entry)
        terms = [term for term in source.terms if isinstance(term, PackTerm)]
        sums = [term for term in source.terms if isinstance(term, _RecordedTerm)]
        if sums or len(terms) == len(source.terms):
            kind = "delta" if source.base.shape == job.shape else "grown" if job.numel > source.base.numel else "shrunk"
            written = (sums[0].close(),) if sums else self._copied(terms)
            stored = self._rows(job, source.rows) if source.rows is not None else None
            return replace(entry, kind=kind, terms=written, stored=stored)
        # A tensor that some pack holds whole and that others change: its sum is kept whole.
        return write_whole(self.writer, self.base, job, entry)

    def _rows(self, job: TensorJob, rows: RowSource) -> BlobRef:
        """Copy the rows that a pack stores after the common ones, or write those that are made of several packs'."""
        if isinstance(rows, StoredRows):
            return self.writer.copy_blob(rows.reader, rows.ref)

        def encode(start: int) -> StoredChunk:
            return encode_stored_chunk(rows.read(start, min(start + CHUNK, job.numel)))

        chunked = self.writer.chunked_blob(stored_layout(job.numel - rows.start))
        with closing(ordered_map(encode, range(rows.start, job.numel, CHUNK), self.options.workers)) as chunks:
            for chunk in chunks:
                chunked.append(chunk)
        return chunked.close()

    def _copied(self, terms: Sequence[PackTerm]) -> tuple[Term, ...]:
        """Copy terms, with their weights in their factors."""
        return tuple(replace(self._copy(term.reader, term.term), factor=float(term.factor)) for term in terms)

    def _copy(self, reader: PackReader, term: Term) -> Term:
        """Copy the blobs of a term."""
        blob = self.writer.copy_blob(reader, term.blob)
        return replace(term, blob=blob, lines=None if term.lines is None else self.writer.copy_blob(reader, term.lines))

    def _files(self) -> tuple[FileEntry, ...] | None:
        """Copy the side files of the pack that decides; of the base's own, only the digests."""
        assets, entries = self.composition.assets, []
        if assets is not None and assets.index.files is None and not self.own_files:
            return None
        carried = {file.name for file in assets.index.files or () if file.blob is not None} if assets else set()
        carried |= set(self.own_files)
        contents: dict[str, bytes] = {}
        copy_side_files(self.base, assets, contents.__setitem__, verify=self.options.verify, dtype=None)
        contents.update(self.own_files)
        for name in sorted(contents, key=str.encode):
            twin = self.base.side_file(name) if name in carried else None
            before = twin.read() if twin is not None and twin.size <= DEFAULT_LIMITS.side_file_bytes else None
            entries.append(self.writer.side_file(name, contents[name], carry=name in carried, before=before))
        return tuple(entries)


@dataclass
class _RecordedTerm:
    """A blended term that keeps what it adds, as f32 values at stored positions, until it is written chunk by chunk.

    Attributes:
        term: The blended term.
        name: Name of the tensor.
        layout: Its chunks.
        codec: How the sums are written.
        writer: The new pack.
        chunks: Encoded chunks that are not handed over yet, by number.
    """

    term: BlendedTerm
    name: str
    layout: Layout
    codec: TermCodec
    writer: PackWriter
    chunks: dict[int, StoredChunk] = field(default_factory=dict)
    _blob: ChunkedBlobWriter | None = None
    _nnz: int = 0

    def chunk(self, number: int, base: Elements, source: DType, scratch: Scratch) -> Sparse:
        """Compute a chunk and keep it."""
        positions, values = added = self.term.chunk(number, base, source, scratch)
        if not np.isfinite(values).all():
            hint = "Merge into a folder, or with smaller weights."
            raise NonFiniteError("a sum of differences overflows", tensor=self.name, hint=hint)
        counts = tile_counts(positions, len(base))
        self.chunks[number] = encode_term_chunk(self.codec, positions, values, counts, len(base), np.float32(1))[0]
        return added

    def add_to(self, number: int, elements: Elements, dtype: DType, scratch: Scratch) -> None:
        """Compute a chunk, keep it, and add it to elements in place."""
        kernels.active().add_in_place(elements, dtype, [self.chunk(number, elements, dtype, scratch)])

    def __getstate__(self) -> dict[str, Any]:
        """In another process chunks are encoded, and sent back to be written."""
        return vars(self) | {"writer": None, "chunks": {}, "_blob": None}

    def write(self, chunk: StoredChunk) -> None:
        """Write a chunk; chunks come in order, and those of one tensor after those of another."""
        self._blob = self._blob or self.writer.chunked_blob(self.layout)
        self._blob.append(chunk)
        self._nnz += sum(chunk.counts)

    def close(self) -> Term:
        """Return the term as the pack has it."""
        blob = self._blob or self.writer.chunked_blob(self.layout)
        return Term(self.codec.index, self.codec.values, 1.0, self._nnz, blob.close(), shift=self.codec.shift)


def _recorded(job: TensorJob, writer: PackWriter) -> TensorJob:
    found = blended(job)
    if found is None:
        return job
    index, shift = best_index(found.term.density(job.common))
    codec = TermCodec(index, "f32", shift)
    return found.with_terms((_RecordedTerm(found.term, job.name, Layout(job.common, 2, has_counts=True), codec, writer),))


def _recorded_of(job: TensorJob, chunk: int) -> StoredChunk | None:
    """Return what the one blended term of a tensor, if it has one, has encoded of a chunk."""
    terms = (term for term in job.terms if isinstance(term, _RecordedTerm))
    return next((term.chunks.pop(chunk, None) for term in terms), None)


def _write_recorded(job: TensorJob, chunk: int, recorded: StoredChunk | None) -> None:
    if recorded is not None:
        next(term for term in job.terms if isinstance(term, _RecordedTerm)).write(recorded)
