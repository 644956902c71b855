"""The base tensor of an entry, also one that is made of boxes of others. Implements spec/03-index.md sections 3.3 and 3.10.

So a fused tensor of the fine-tune (experts stacked, gate and up or q, k and v joined) starts from the base's separate ones, a separate one
from a box of the base's fused one, and either from matrices that lie the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from deltapack.dtypes import DType

__all__ = ["FEATURE", "Arrangement", "BaseRef", "Piece"]

FEATURE = "arranged"
"""The required feature of a pack with an arranged tensor."""


@dataclass(frozen=True)
class Piece:
    """A box of a tensor of the base.

    Attributes:
        name: The tensor.
        start: Its first element in each dimension of that tensor.
        transposed: Whether its last two dimensions are exchanged.
    """

    name: str
    start: tuple[int, ...]
    transposed: bool = False

    def extent_in(self, cell: tuple[int, ...]) -> tuple[int, ...]:
        """Return the extent of the box in the dimensions of its tensor, for the extent of its cell in the arranged tensor."""
        if self.transposed:
            cell = (*cell[:-2], cell[-1], cell[-2])
        rank = len(self.start)
        return (1,) * (rank - len(cell)) + cell[max(0, len(cell) - rank) :]

    def to_json(self) -> dict[str, Any]:
        """Return the piece as the index spells it."""
        out: dict[str, Any] = {"name": self.name, "from": list(self.start)}
        return out | ({"transposed": True} if self.transposed else {})


@dataclass(frozen=True)
class Arrangement:
    """A tensor cut into a grid of cells, each of which is a piece of the base.

    Attributes:
        grid: For each dimension, the extents of the cells along it.
        pieces: What fills the cells, in row-major order.
    """

    grid: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the tensor."""
        return tuple(sum(extents) for extents in self.grid)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base's tensors that it is made of, each once, in the order of the pieces."""
        return tuple(dict.fromkeys(piece.name for piece in self.pieces))

    @property
    def label(self) -> str:
        """What it is made of, in a few words."""
        count = len(self.names)
        return (f"{count} tensors" if count > 1 else self.names[0]) + (
            ", transposed" if any(piece.transposed for piece in self.pieces) else ""
        )

    @property
    def cells(self) -> Iterator[tuple[Piece, tuple[int, ...]]]:
        """Each piece with the extent of its cell."""
        return zip(self.pieces, product(*self.grid), strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return the arrangement as the index spells it: two keys of a `base`."""
        return {"grid": [list(extents) for extents in self.grid], "pieces": [piece.to_json() for piece in self.pieces]}


@dataclass(frozen=True)
class BaseRef:
    """The tensor of the base that an entry starts from.

    Attributes:
        name: Its name; where it is arranged, the entry's own.
        dtype: Its element type.
        shape: Its dimensions.
        digest: Its root digest.
        arranged: What it is made of, where no base holds it as one tensor.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    digest: str
    arranged: Arrangement | None = None

    @property
    def numel(self) -> int:
        """Number of elements; of a raw type, of bytes."""
        return self.dtype.count(self.shape)

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the tensors that a base must hold for it."""
        return (self.name,) if self.arranged is None else self.arranged.names
