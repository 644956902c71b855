"""What all tiles of a term read on a device, beside their own streams: scales of rows and columns, factors."""

from __future__ import annotations

from deltapack.codecs.factors import FactorChunks
from deltapack.codecs.sources import LinedChunks, TermChunks
from deltapack.kernels.layout import Values

__all__ = ["parts_of"]


def parts_of(blob: TermChunks | FactorChunks) -> dict[str, Values]:
    """Return the parts of a term by name.

    `rows` and `columns` `[n] f32` are the scales of a term with `lines`, 0 where a row is dropped. `left` `[rank, rows] f32` and `right`
    `[rank, columns] f32` are the factors of one that has such: of the left one the odd numbers that its codes stand for, as what they are
    multiplied with, `sizes` `[rank] f32` times a factor, depends on the pack's weight; the right one is whole.

    Raises:
        FormatError: The blob of factors is damaged (rules R8 to R10).
        LimitError: It is larger than anybody's factors are.
    """
    if isinstance(blob, FactorChunks):
        factors = blob.factors()
        return {"left": factors.left_numbers, "right": factors.right_values, "sizes": factors.scales[0]}
    if isinstance(blob, LinedChunks):
        return {"rows": blob.lines.rows, "columns": blob.lines.columns}
    return {}
