"""One chunk of elements that are stored whole: tensors, or rows after the common ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.planes import join_planes, split_planes
from deltapack.dtypes import DType
from deltapack.format.frames import pack_stream
from deltapack.format.index import BlobRef, Entry
from deltapack.format.reader import ChunkedBlob, PackReader
from deltapack.format.table import Layout
from deltapack.format.writer import StoredChunk

__all__ = ["decode_stored", "decode_stored_chunk", "encode_stored_chunk", "stored_chunks", "stored_layout"]


def stored_layout(numel: int) -> Layout:
    """Return the layout of `numel` elements stored whole."""
    return Layout(numel, 1, has_counts=False)


def stored_chunks(reader: PackReader, entry: Entry, blob: BlobRef) -> ChunkedBlob:
    """Return the chunks of what an entry stores whole, in its blob `stored`: all of a tensor, or the rows after the common ones.

    Raises:
        FormatError: Their table is damaged.
    """
    return reader.chunked_blob(blob, stored_layout(entry.numel - entry.common), 0, entry.name)


def encode_stored_chunk(elements: NDArray[np.generic]) -> StoredChunk:
    """Encode the elements of a chunk whole, `[n]` in their storage type."""
    raw = split_planes(elements)
    return StoredChunk((pack_stream(raw),), (len(raw),))


def decode_stored_chunk(blob: ChunkedBlob, dtype: DType, chunk: int) -> NDArray[np.generic]:
    """Decode a chunk stored whole, `[n]` in the storage type of `dtype`.

    Raises:
        FormatError: Rule R8 or R10 is broken.
    """
    length = blob.layout.chunk_length(chunk) * dtype.itemsize
    (raw,) = blob.streams(chunk, ((length, length),))
    return join_planes(raw, dtype.storage)


def decode_stored(blob: ChunkedBlob, dtype: DType) -> NDArray[np.generic]:
    """Decode all chunks stored whole, `[n]` in the storage type of `dtype`.

    Raises:
        FormatError: Rule R8 or R10 is broken.
    """
    parts = [decode_stored_chunk(blob, dtype, chunk) for chunk in range(blob.layout.chunks)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype.storage)
