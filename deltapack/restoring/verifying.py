"""Use case: check a pack, with or without its base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from deltapack import kernels
from deltapack.checkpoint import check_side_name, open_checkpoint
from deltapack.codecs.chunk import TermChunks, decode_term_chunk, term_chunks
from deltapack.codecs.exact_entry import ExactTensor, exact_bytes
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.stored import stored_chunks
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import check_base_files, check_carried
from deltapack.composing.basecheck import wrong_result
from deltapack.composing.compose import compose
from deltapack.composing.containers import check_heads_alone, restored_files
from deltapack.composing.tensor_job import FromBase, StoredRows
from deltapack.composing.weighted import WeightedPack
from deltapack.format.containers import restored_weight_files
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.identity import content_of
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.buffers import Buffers
from deltapack.parallel import batches, ordered_map, resolve_workers
from deltapack.reports import Progress, VerifyReport
from deltapack.restoring.engine import Nowhere, restore_tensors
from deltapack.sources.inputs import guarded

__all__ = ["verify"]

_BATCH = 8 * CHUNK
"""Elements that one task decodes, at least."""


@guarded
def verify(
    pack: str | Path,
    base: str | Path | None = None,
    *,
    weight_files: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check every byte of a pack: structure, checksums, every stream decoded, every side file, digests of what is stored whole.

    Chunks of exact tensors that start from the base are decoded with the base only; without it their checksums are compared.

    With a base, also restore every tensor in memory, chunk by chunk, compare the digests of base and result, and look for the side files
    and headers of weight files that the pack leaves to the base or refers to: `apply` does what `verify` says.

    Args:
        pack: The pack.
        base: The checkpoint it should fit.
        weight_files: Which weights count where its folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads; every core unless given.
        progress: Called with bytes done so far and in all.

    Raises:
        BaseMismatchError: The base is not the pack's.
        ChecksumError: The pack holds other elements than it promises.
        FormatError: The pack is damaged.
    """
    count, report = resolve_workers(workers), progress or (lambda done, total: None)
    with PackReader(pack) as reader, kernels.working_on(reader.index.entries):
        reader.check_parts()
        carried = [file for file in reader.index.files or () if file.blob is not None]
        for file in reader.index.files or ():
            check_side_name(file.name)
        for file in carried:
            reader.check_side_file(file)
        reader.check_padding()
        check_heads_alone(reader)
        for table in reader.index.tables:
            reader.plain_blob(table)
        for entry in reader.index.entries:
            reader.chunk_digests(entry)
            _check_empty(reader.path, entry)
        chunks, kept = sum(_chunk_count(entry) for entry in reader.index.entries), restored_weight_files(reader.index.containers)
        if base is None:
            joined = batches(_chunk_tasks(reader, Buffers()), lambda task: CHUNK, _BATCH)
            with closing(ordered_map(lambda batch: [task() for task in batch], joined, count)) as checked:
                for done, _ in enumerate(chain.from_iterable(checked), 1):
                    report(done, chunks)
            return VerifyReport(reader.path, reader.file_bytes, chunks, len(carried), 0, False, [], kept, *_identity(reader))
        with open_checkpoint(base, weights=weight_files) as base_ckpt:
            seen = arranged_base(base_ckpt, [reader])
            composition = compose(seen, [WeightedPack(reader)])
            notes = [*composition.notes, *check_base_files(base_ckpt, reader, verify=True)]
            check_carried(base_ckpt, reader)
            restored = restore_tensors(
                seen,
                composition.jobs,
                Nowhere(),
                verify=True,
                digests=True,
                workers=count,
                progress=report,
            )
            with closing(restored):
                based = sum(isinstance(tensor.job.source, FromBase) for tensor in restored)
            if reader.index.containers:  # after the tensors: of another base nothing else is worth telling
                restored_files(reader, base_ckpt)
        return VerifyReport(reader.path, reader.file_bytes, chunks, len(carried), based, True, notes, kept, *_identity(reader))


def _identity(reader: PackReader) -> tuple[str, str, str]:
    return reader.pack_id, content_of(reader.index), reader.index.base_fingerprint


def _chunk_count(entry: Entry) -> int:
    stored = chunk_count(entry.numel - entry.common) if entry.stored is not None else 0
    exact = len(entry.exact) if entry.partner is not None else min(1, len(entry.exact))
    return len(entry.terms) * chunk_count(entry.common) + stored + exact * chunk_count(entry.numel)


def _chunk_tasks(reader: PackReader, buffers: Buffers) -> Iterator[Callable[[], object]]:
    """Yield one decoding of each chunk of each blob; tables are checked on the way."""
    for entry in reader.index.entries:
        for term in entry.terms:
            blob = term_chunks(reader, entry, term)
            for chunk in range(blob.layout.chunks):
                yield partial(_decode_term, blob, term, chunk, buffers)
        if entry.exact:
            yield from _exact_tasks(ExactTensor.of(reader, entry), reader.chunk_digests(entry)[1])
        if entry.stored is not None:
            rows = StoredRows(reader, entry.stored, stored_chunks(reader, entry, entry.stored), entry.dtype, entry.common)
            digests = reader.chunk_digests(entry)[1]
            for chunk in range(rows.blob.layout.chunks):
                yield partial(_check_stored, rows, entry, digests, chunk)


def _exact_tasks(exact: ExactTensor, digests: Sequence[bytes]) -> Iterator[Callable[[], object]]:
    """Yield one check of each chunk of each step: its bytes where it starts from the base, else the restored elements."""
    entry = exact.entry
    for chunk in range(chunk_count(entry.numel)):
        if entry.partner is None:
            yield partial(_check_stored, exact, entry, digests, chunk)
        else:
            yield from (partial(exact_bytes, blob, chunk, entry.dtype) for blob in exact.blobs)


def _decode_term(blob: TermChunks | FactorChunks, term: Term, chunk: int, buffers: Buffers) -> None:
    decode_term_chunk(blob, term, chunk, np.float32(1), buffers.sparse(0, blob.layout.chunk_length(chunk)))


def _check_stored(rows: StoredRows | ExactTensor, entry: Entry, digests: Sequence[bytes], chunk: int) -> None:
    """Decode a stored chunk, and compare what ends in it of the result's chunks: those that hold no element of the base.

    Args:
        rows: What the entry stores.
        entry: Its entry.
        digests: Chunk digests of the whole result; none where it has one chunk.
        chunk: Number of the stored chunk, counted from the first stored element.

    Raises:
        ChecksumError: A chunk of the result has another digest.
    """
    begin = entry.common + chunk * CHUNK
    stop = min(begin + CHUNK, entry.numel)
    first = max(begin // CHUNK, chunk_count(entry.common))
    last = chunk_count(entry.numel) if stop == entry.numel else stop // CHUNK
    start = min(begin, first * CHUNK)
    elements = rows.read(start, stop)
    for number in range(first, last):
        found = chunk_digest(elements[number * CHUNK - start : min((number + 1) * CHUNK, entry.numel) - start])
        if digests:
            _compare(rows.reader.path, entry.name, digests[number].hex(), found.hex())
        else:  # one chunk, none of it from the base
            _compare(rows.reader.path, entry.name, entry.digest, root_digest(entry.dtype.name, entry.shape, [found]))


def _check_empty(path: Path, entry: Entry) -> None:
    """Check the digest of a tensor without elements, which needs nothing else."""
    if entry.in_result and entry.numel == 0:
        _compare(path, entry.name, entry.digest, root_digest(entry.dtype.name, entry.shape, ()))


def _compare(path: Path, tensor: str, expected: str, found: str) -> None:
    if expected != found:
        raise wrong_result(path, tensor, expected, found)
