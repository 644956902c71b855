"""Tensors of a merge that stay bit for bit what a pack codes exactly, coded anew for a pack of the merge."""

from __future__ import annotations

import numpy as np

from deltapack.checkpoint import Checkpoint
from deltapack.codecs.exact import encode_exact_chunk
from deltapack.codecs.exact_entry import exact_layout, padded_base, stored_exact
from deltapack.composing.chunks import restore_chunk
from deltapack.composing.tensor_job import FromBase, TensorJob
from deltapack.format.digest import CHUNK
from deltapack.format.index import Entry, ExactStep
from deltapack.format.writer import PackWriter
from deltapack.kernels.buffers import Buffers

__all__ = ["write_exact"]


def write_exact(writer: PackWriter, base: Checkpoint, job: TensorJob, entry: Entry) -> tuple[ExactStep, ...]:
    """Code the tensor that a job gives as an exact entry does, and return its steps.

    Args:
        writer: The new pack.
        base: The base.
        job: What gives the elements.
        entry: The exact entry that is being written, with its base.
    """
    layout, buffers = exact_layout(job.numel), Buffers()
    blob = writer.chunked_blob(layout)
    partner = entry.partner if isinstance(job.source, FromBase) else None
    for chunk in range(layout.chunks):
        elements = restore_chunk(base, job, chunk, buffers).elements
        before = np.zeros(0, job.dtype.storage)
        if partner is not None and chunk * CHUNK < partner.numel:
            before = base.read(partner.name, chunk * CHUNK, min(chunk * CHUNK + len(elements), partner.numel))
        source = job.dtype if partner is None else partner.dtype
        blob.append(stored_exact(encode_exact_chunk(padded_base(before, source, job.dtype, len(elements)), elements, job.dtype)))
    return (ExactStep(blob.close()),)
