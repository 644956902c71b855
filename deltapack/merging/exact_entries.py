"""Tensors of a merge that are no sum of the packs' terms, written anew for a pack of the merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from deltapack.checkpoint import Checkpoint
from deltapack.codecs.exact_entry import exact_layout, stored_exact
from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.composing.chunks import restore_chunk
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.format.digest import CHUNK
from deltapack.format.index import Entry, ExactStep
from deltapack.format.writer import PackWriter
from deltapack.kernels.buffers import Buffers
from deltapack.kernels.layout import Elements
from deltapack.packing.planning import exact_chunk, worth_coding

__all__ = ["write_exact", "write_whole"]


def write_exact(writer: PackWriter, base: Checkpoint, job: TensorJob, entry: Entry) -> Entry:
    """Code the tensor that a job gives exactly, and return its entry.

    Args:
        writer: The new pack.
        base: The base.
        job: What gives the elements.
        entry: The entry that is being written, with its base, of any kind.
    """
    entry = replace(entry, kind="exact")
    blob = writer.chunked_blob(exact_layout(job.numel))
    for before, elements in _chunks(base, job, entry):
        blob.append(stored_exact(exact_chunk(entry, before, elements)))
    return replace(entry, exact=(ExactStep(blob.close()),))


def write_whole(writer: PackWriter, base: Checkpoint, job: TensorJob, entry: Entry) -> Entry:
    """Write the tensor that a job gives as it is, coded exactly where its first chunk says that this is smaller; arguments as above."""
    exact = replace(entry, kind="exact")
    if any(worth_coding(exact, *first) for first in _chunks(base, job, exact, 1)):
        return write_exact(writer, base, job, entry)
    blob = writer.chunked_blob(stored_layout(job.numel))
    for _, elements in _chunks(base, job, exact):
        blob.append(encode_stored_chunk(elements))
    return replace(entry, kind="stored", stored=blob.close())


def _chunks(base: Checkpoint, job: TensorJob, entry: Entry, most: int | None = None) -> Iterator[tuple[Elements, Elements]]:
    """Yield the base's elements and the tensor's own of each chunk of an exact entry; they are valid until the next."""
    buffers, partner = Buffers(), entry.partner if isinstance(job.source, FromBase) else None
    for chunk in range(exact_layout(job.numel).chunks)[:most]:
        elements, start = restore_chunk(base, job, chunk, buffers).elements, chunk * CHUNK
        before = np.zeros(0, job.dtype.storage)
        if partner is not None and start < partner.numel:
            before = base.read(partner.name, start, min(start + len(elements), partner.numel))
        yield before, elements
