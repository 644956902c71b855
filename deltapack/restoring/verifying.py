"""Use case: check a pack, with or without its base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from deltapack import kernels
from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.heads import new_head
from deltapack.codecs.chunk import TermChunks, decode_term_chunk, term_chunks
from deltapack.codecs.exact_entry import ExactTensor, exact_bytes
from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.stored import stored_chunks
from deltapack.composing.arranged import arranged_base
from deltapack.composing.assets import check_base_files, copy_side_files
from deltapack.composing.basecheck import check_fingerprint, wrong_result
from deltapack.composing.chain import in_order, open_links, paths_of, restored_from
from deltapack.composing.compose import compose
from deltapack.composing.containers import check_heads_alone
from deltapack.composing.metadata import result_metadata
from deltapack.composing.tensor_job import FromBase, StoredRows
from deltapack.composing.weighted import WeightedPack
from deltapack.errors import RecipeError
from deltapack.format.containers import restored_weight_files
from deltapack.format.digest import CHUNK, chunk_count, chunk_digest, root_digest
from deltapack.format.identity import content_of
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader
from deltapack.kernels.buffers import Buffers
from deltapack.parallel import batches, ordered_map, resolve_workers
from deltapack.reports import Progress, VerifyReport
from deltapack.restoring.engine import Nowhere, restore_tensors
from deltapack.restoring.promised import Promise
from deltapack.restoring.provenance import restored as provenance
from deltapack.restoring.weight_files import files_like_base, finetuned_files
from deltapack.sources.inputs import guarded

__all__ = ["verify"]

_BATCH = 8 * CHUNK
"""Elements that one task decodes, at least."""


@guarded
def verify(
    pack: str | Path | Sequence[str | Path],
    base: str | Path | None = None,
    *,
    quick: bool = False,
    weight_files: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check every byte of a pack: structure, checksums, every stream decoded, every side file, digests of what is stored whole.

    Chunks of exact tensors that start from the base are decoded with the base only; without it their checksums are compared.

    With a base, also do all that `apply` does but write: restore every tensor in memory, chunk by chunk, compare the digests of base and
    result, and read or find each side file and header of a weight file. `apply` to a folder does what `verify` says.

    Args:
        pack: The pack; or a list of them, a chain, which is put in order as `apply` does.
        base: The checkpoint it should fit.
        quick: Whether to look at the index alone: the first bytes and the last ones, whatever the size. Not with a base.
        weight_files: Which weights count where its folder has one file and an index of shards that differ: `"single"` or `"index"`.
        workers: Threads; every core unless given.
        progress: Called with bytes done so far and in all.

    Raises:
        BaseMismatchError: The base is not the pack's, or the packs are no chain.
        ChecksumError: The pack holds other elements than it promises.
        FormatError: The pack is damaged.
        RecipeError: `quick` is asked for with a base, or an argument is out of range.
    """
    count, report = resolve_workers(workers), progress or (lambda done, total: None)
    if quick and base is not None:
        raise RecipeError("a quick look at the index says nothing of a base", found=base, hint="Leave out one of the two.")
    with open_links(paths_of(pack)) as packs:
        links = in_order(packs)
        if base is not None:
            return _with_base(links, base, weight_files, count, report)
        total, done = sum(map(_chunks_in, links)), 0
        for reader in links if not quick else ():
            with kernels.working_on(reader.index.entries):
                _check_bytes(reader)
                done += _check_chunks(reader, count, partial(_told, report, done, total))
        for reader in links:  # last, as `apply` does
            check_fingerprint(reader)
        return _report(links, "index" if quick else "pack")


def _told(report: Progress, before: int, total: int, here: int) -> None:
    """Tell how much is done where packs before were checked."""
    report(before + here, total)


def _report(links: Sequence[PackReader], level: str, based: int = 0, notes: Sequence[str] = ()) -> VerifyReport:
    """Return what was reached."""
    last = links[-1]
    read = level != "index"
    chunks = sum(map(_chunks_in, links)) if read else 0
    files = sum(file.blob is not None for link in links for file in link.index.files or ()) if read else 0
    return VerifyReport(
        last.path,
        sum(link.file_bytes for link in links),
        chunks,
        files,
        based,
        level == "applies",
        list(notes),
        restored_weight_files(last.index.containers),
        *_identity(last),
        level,
        len(links),
    )


def _with_base(links: Sequence[PackReader], base: str | Path, weight_files: str | None, workers: int, progress: Progress) -> VerifyReport:
    """Check packs with the base of the first, in the order in which `apply` meets the same faults."""
    *before, reader = links
    with open_checkpoint(base, weights=weight_files) as files, kernels.working_on(files.tensors.values(), len(links)):
        base_ckpt = restored_from(files, before)
        weighted, seen = WeightedPack(reader), arranged_base(base_ckpt, [reader])
        composition = compose(seen, [weighted])
        kept, _ = finetuned_files(base_ckpt, weighted, Path("out"), dtype=None, shard_bytes=None)
        notes = [*base_ckpt.notes, *composition.notes, *check_base_files(base_ckpt, reader, verify=True)]
        metadata = result_metadata(base_ckpt, composition.metadata, composition.folders, provenance(weighted, composition, verify=True))
        for shard in files_like_base(seen, composition, None) if kept is None else ():
            new_head(shard, composition.aliases, metadata)
        promise = Promise(weighted)
        restored = restore_tensors(seen, composition.jobs, Nowhere(), verify=True, digests=True, workers=workers, progress=progress)
        with closing(restored):
            tensors = list(restored)
        for link in links:
            check_fingerprint(link)
        promise.check_tensors([tensor.job for tensor in tensors], composition.aliases)
        beside = set[str]()
        copy_side_files(base_ckpt, reader, lambda name, data: beside.add(name), verify=True, dtype=None)
        promise.check_files(beside)
        for link in links:  # of what apply does not read
            _check_bytes(link)
        return _report(links, "applies", sum(isinstance(tensor.job.source, FromBase) for tensor in tensors), notes)


def _check_bytes(reader: PackReader) -> None:
    """Check all of a pack that lies in no chunk."""
    reader.check_parts()
    for file in reader.index.files or ():
        if file.blob is not None:
            reader.check_side_file(file)
    reader.check_padding()
    check_heads_alone(reader)
    for table in reader.index.tables:
        reader.plain_blob(table)
    for entry in reader.index.entries:
        reader.chunk_digests(entry)
        _check_empty(reader.path, entry)


def _check_chunks(reader: PackReader, workers: int, report: Callable[[int], None]) -> int:
    """Decode every chunk, and return how many there are."""
    done = 0
    joined = batches(_chunk_tasks(reader, Buffers()), lambda task: CHUNK, _BATCH)
    with closing(ordered_map(lambda batch: [task() for task in batch], joined, workers)) as checked:
        for done, _ in enumerate(chain.from_iterable(checked), 1):
            report(done)
    return done


def _chunks_in(reader: PackReader) -> int:
    return sum(_chunk_count(entry) for entry in reader.index.entries)


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
