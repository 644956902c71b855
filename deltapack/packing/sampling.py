"""A few pieces of a tensor's differences, and what is settled by them: the value codec that `auto` takes, and a scale for all codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltapack.codecs.chunk import TermCodec, encode_term_chunk
from deltapack.codecs.scaling import Scaling
from deltapack.errors import NonFiniteError
from deltapack.format.codecs import VALUE_CODECS
from deltapack.format.digest import TILE
from deltapack.packing.coding import fit_levels, fit_trits
from deltapack.packing.recipe import TensorRecipe
from deltapack.sparsify.dare import ALL_KEPT
from deltapack.sparsify.kept import TensorDelta

__all__ = ["Read", "Sample"]

Read = Callable[[int, int], NDArray[np.float32]]
"""Returns differences [start, stop) of a tensor; they are valid until the thread reads again."""

_AUTO_ORDER = [row.name for row in reversed(list(VALUE_CODECS.values())) if row.auto]
_TILES, _TILES_OF_ONE_SCALE = 8, 16
"""How many are looked at; a scale for all is wrong for all, if it is."""
_BITS_OF_LEVELS = 2.0
"""Noise is a tenth of the power then; with more, int4 is as small."""
_TAILED = 10.0
"""Mean square of a vector's differences over their median square, up to which it counts; of a Gaussian it is 2.2."""
_NOISE_FLOOR = 1e-4
"""Relative squared error that is always allowed: 40 dB, what int8 reaches; below it `auto` would mean bf16 everywhere."""


@dataclass(frozen=True)
class Sample:
    """Tiles spread over a tensor.

    Attributes:
        read: Reads differences.
        numel: Number of elements.
        recipe: Settings of the tensor.
        key: Mask key.
        name: Name of the tensor.
    """

    read: Read
    numel: int
    recipe: TensorRecipe
    key: int
    name: str

    def whole(self, row: int, workers: int) -> TensorDelta:
        """Return what a sparsifier is given of the tensor, whose rows have so many elements."""
        return self._delta(self.read, self.numel, row, workers)

    def auto_values(self, fidelity: float) -> str:
        """Return the smallest value codec whose noise is within `fidelity` times the noise of dropping.

        Dropping with rate p and rescaling adds p/(1-p) of the delta's power as noise; coding the kept values with a relative squared
        error e adds e/(1-p). So the rule is e <= fidelity * p. The error is that of scales of gain 1, as what comes back is: for coarse
        codes it is larger than the least squared error, and the least is not what a user gets.
        """
        kept, counts = self._kept()
        squares = np.square(kept, dtype=np.float64)
        power = float(squares.sum())
        if power == 0 or not np.isfinite(power):
            return _AUTO_ORDER[0] if power == 0 else "f32"
        drop_rate = 1 - self.recipe.density
        allowed = max(fidelity * drop_rate, _NOISE_FLOOR)
        if self.recipe.role == "vector":
            # Each of its elements counts: a few that change much must not make the others' changes a matter of rounding.
            power = min(power, _TAILED * float(np.median(squares)) * len(squares))
        for values in _AUTO_ORDER[:-1]:
            _, seen = encode_term_chunk(TermCodec("all", values), np.zeros(0, np.uint32), kept, counts, 0, np.float32(1))
            noise = float(np.square(seen.values - kept, dtype=np.float64).sum())
            if noise <= allowed * power:
                return values
        return _AUTO_ORDER[-1]

    def scaling(self, values: str) -> Scaling:
        """Return the scale of a tensor whose codes share one, such that what is restored has gain 1 before anything is dropped.

        Raises:
            NonFiniteError: Differences are so large that f32 does not hold the scale.
        """
        method, all_kept = self.recipe.method, self.recipe.method.plan is None or self.recipe.keep == ALL_KEPT
        tiles = self._tiles(_TILES_OF_ONE_SCALE)
        sample = np.concatenate([np.zeros(0, np.float32), *(tile.copy() if all_kept else self._selected(tile) for tile in tiles)])
        if VALUE_CODECS[values].coding == "levels":
            fitted = fit_levels(sample, _BITS_OF_LEVELS)
        else:  # what was kept for its magnitude is kept for good
            fitted = fit_trits(sample) if all_kept or method.by_chance else fit_trits(sample, 1.0)
        scale = 0.0 if fitted is None else fitted.scale * fitted.gain
        if fitted is None or not scale > 0 or not np.isfinite(sample).all():  # of what is not finite the entry tells
            return Scaling("tensor", 0.0)
        if scale > float(np.finfo(np.float32).max):
            raise NonFiniteError(f"a difference is too large for values={values}", tensor=self.name, hint="Use --values f32.")
        return Scaling("tensor", scale, threshold=fitted.threshold / fitted.gain)

    def _kept(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return kept differences of a few tiles, and their count in each tile."""
        parts = [np.zeros(0, np.float32), *(self._typical(tile) for tile in self._tiles(_TILES))]
        return np.concatenate(parts), np.array([len(part) for part in parts if len(part)], np.int64)

    def _tiles(self, most: int) -> Iterator[NDArray[np.float32]]:
        """Yield the differences of some tiles, each valid until the next is asked for."""
        tiles = -(-self.numel // TILE)
        for tile in map(int, np.unique(np.linspace(0, tiles - 1, min(tiles, most)).astype(int))):
            yield self.read(tile * TILE, min((tile + 1) * TILE, self.numel))

    def _typical(self, delta: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return differences like those that would be kept of a tile, as a new array."""
        recipe = self.recipe
        if recipe.method.plan is None or recipe.method.by_chance or recipe.keep == ALL_KEPT:
            # The tile's own mask costs a walk over its whole chunk; any fixed sample of the same size serves here.
            return delta[:: max(1, min(ALL_KEPT // recipe.keep, len(delta)))].copy()
        return self._selected(delta)

    def _selected(self, delta: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what a sparsifier makes of a tile that is all of the tensor."""
        plan = self.recipe.method.plan
        assert plan is not None
        return plan(self._delta(lambda start, stop: delta[start:stop], len(delta), len(delta), 1)).select(0, delta).values

    def _delta(self, read: Read, numel: int, row: int, workers: int) -> TensorDelta:
        recipe = self.recipe
        return TensorDelta(read, numel, row, recipe.density, self.key, recipe.parameters, recipe.unbiased, workers)
