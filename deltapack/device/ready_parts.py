"""What all tiles of a term read on a device, beside their own streams: scales of rows and columns, factors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltapack.format.frames import unpack_stream
from deltapack.format.index import Entry, Term
from deltapack.format.reader import PackReader

__all__ = ["parts_of"]


def parts_of(reader: PackReader, entry: Entry, term: Term) -> dict[str, NDArray[Any]]:
    """Return the parts of a term by name.

    `rows` and `columns` `[n] f32` are the scales of a term with `lines`, 0 where a row is dropped. `left` `[rank, rows] f32` and `right`
    `[rank, columns] f32` are the factors of one that has such: of the left one the odd numbers that its codes stand for, as what they are
    multiplied with, `sizes` `[rank] f32` times a factor, depends on the pack's weight; the right one is whole.

    Raises:
        FormatError: A blob is damaged (rules R8 to R10).
    """
    if term.is_factors:
        return _factors(reader, entry, term)
    if term.lines is None:
        return {}
    columns = entry.shape[-1]
    rows = entry.common // columns
    raw = unpack_stream(reader.plain_blob(term.lines), rows + (columns if term.scales == "outer" else 0))
    lines = np.frombuffer(raw, np.uint8).astype(np.int64)
    sizes = np.ldexp((2.0 ** ((lines & 7) / 8)).astype(np.float32), (lines >> 3) - 16).astype(np.float32)
    sizes[lines == 0] = 0
    return {"rows": sizes[:rows], "columns": sizes[rows:]} if term.scales == "outer" else {"rows": sizes}


def _factors(reader: PackReader, entry: Entry, term: Term) -> dict[str, NDArray[Any]]:
    columns = entry.shape[-1]
    rows, rank, bits = entry.common // columns, term.rank, term.bits
    per = [-(-n * bits // 8) for n in (rows, columns)]
    raw = np.frombuffer(unpack_stream(reader.plain_blob(term.blob), rank * (8 + sum(per))), np.uint8)
    sizes = raw[: 8 * rank].view(np.float32).reshape(2, rank)

    def odd(stream, count):
        half = 1 << bits - 1
        fields = ((stream[:, :, None] >> np.arange(0, 8, bits)) & (1 << bits) - 1).reshape(rank, -1)[:, :count].astype(np.int64)
        return (2 * ((fields ^ half) - half) + 1).astype(np.float32)

    left = odd(raw[8 * rank : 8 * rank + rank * per[0]].reshape(rank, -1), rows)
    right = odd(raw[8 * rank + rank * per[0] :].reshape(rank, -1), columns)
    return {"left": left, "right": right * sizes[1][:, None], "sizes": sizes[0]}
