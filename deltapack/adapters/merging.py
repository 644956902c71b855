"""Elements of a tensor with an adapter merged, made of the base's when they are read."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deltapack.adapters.updates import Hadamard, Kronecker, LowRank, Matrix, Update
from deltapack.checkpoint.tensors import Source, TensorInfo
from deltapack.dtypes import DType
from deltapack.forks import forking_lock
from deltapack.kernels import active, rounding

__all__ = ["ConvertedSource", "Factors", "KeptUpdates", "Magnitude", "MergedSource", "build_update"]

_BLOCK = 1 << 20
"""Elements of the update that are made at a time."""

Factors = Mapping[str, tuple[TensorInfo, Source]]
"""Tensors of the adapter by what they are in their module."""


@dataclass(frozen=True)
class ConvertedSource:
    """Elements of another source, rounded once to `target`."""

    source: Source
    dtype: DType
    target: DType

    def read_into(self, start: int, out: NDArray[np.generic]) -> None:
        """Fill `out` with the elements from `start`."""
        held = np.empty(len(out), self.dtype.storage)
        self.source.read_into(start, held)
        out[:] = rounding.convert(held, self.dtype, self.target)


def build_update(factors: Factors, transposed: bool, scale: float) -> Update:
    """Read the factors of a module and make its update; `transposed` gives that of a weight stored `[in, out]`."""
    part = {name: _matrix(info, source) for name, (info, source) in factors.items() if name != "lora_magnitude_vector"}
    factor = np.float32(scale)
    if "lora_embedding_A" in part:
        return LowRank(part["lora_embedding_A"].T, np.ascontiguousarray(part["lora_embedding_B"].T), factor)
    if "lora_A" in part:
        left, right = part["lora_B"], part["lora_A"]
        return LowRank(right.T, np.ascontiguousarray(left.T), factor) if transposed else LowRank(left, right, factor)
    if "hada_w1_a" in part:
        return Hadamard((part["hada_w1_a"], part["hada_w1_b"]), (part["hada_w2_a"], part["hada_w2_b"]), factor)
    one, two = (part[name] if name in part else active().times(part[f"{name}_a"], part[f"{name}_b"]) for name in ("lokr_w1", "lokr_w2"))
    return Kronecker(one, two, factor)


def _matrix(info: TensorInfo, source: Source) -> Matrix:
    """Return a tensor of the adapter as f32, as a matrix of its first dimension by all others."""
    held = np.empty(info.numel, info.dtype.storage)
    source.read_into(0, held)
    return rounding.to_f32(held, info.dtype).reshape(info.shape[0], math.prod(info.shape[1:]))


@dataclass
class KeptUpdates:
    """Updates whose factors are in memory: those of the few tensors that threads work on."""

    most: int = 4
    _kept: OrderedDict[str, Update] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=forking_lock)

    def get(self, name: str, build: Callable[[], Update]) -> Update:
        """Return the update of a tensor, building it if it is not kept."""
        with self._lock:
            found = self._kept.pop(name, None)
            self._kept[name] = update = build() if found is None else found
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return update


@dataclass(frozen=True)
class Magnitude:
    """What DoRA scales rows of the weight to, or columns of one that is stored `[in, out]`.

    Attributes:
        values: `[rows]` or `[columns] f32`.
        by_column: Which.
    """

    values: Matrix
    by_column: bool


@dataclass(frozen=True)
class MergedSource:
    """Base and update added in f32, rounded once; see `deltapack.checkpoint.tensors.Source`.

    Attributes:
        base: The base's elements.
        dtype: Their type, and that of the result.
        shape: Rows, and columns of all other dimensions.
        update: Returns what is added; it reads the factors, unless they are at hand.
        magnitude: Returns that of DoRA; none for others.
    """

    base: Source
    dtype: DType
    shape: tuple[int, int]
    update: Callable[[], Update]
    magnitude: Callable[[], Magnitude] | None = None
    _lock: threading.Lock = field(default_factory=forking_lock)

    def read_into(self, start: int, out: NDArray[np.generic]) -> None:
        """Fill `out` with the elements from `start`."""
        columns, stop = self.shape[1], start + len(out)
        if start == stop:
            return
        update = self.update()
        step = max(1, _BLOCK // columns)
        for top in range(start // columns, -(-stop // columns), step):
            bottom = min(top + step, -(-stop // columns))
            first, last = max(start, top * columns), min(stop, bottom * columns)
            values = self._values(update, top, bottom, first, last)
            out[first - start : last - start] = rounding.from_f32(values, self.dtype)

    def _values(self, update: Update, top: int, bottom: int, first: int, last: int) -> NDArray[np.float32]:
        """Return the elements [first, last), which lie in rows [top, bottom), before they are rounded."""
        columns = self.shape[1]
        cut = slice(first - top * columns, last - top * columns)
        if self.magnitude is None:
            return _added(self._read(first, last), update.rows(top, bottom).reshape(-1)[cut])
        magnitude = self.magnitude()
        rows = self._sums(update, top, bottom)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if magnitude.by_column:
                rows *= magnitude.values / self._column_norms
            else:
                norms = np.sqrt(active().times(rows.astype(np.float64) ** 2, np.ones((columns, 1)))[:, 0]).astype(np.float32)
                rows *= (magnitude.values[top:bottom] / norms)[:, None]
        return rows.reshape(-1)[cut]

    def _sums(self, update: Update, top: int, bottom: int) -> Matrix:
        """Return whole rows of base and update together."""
        columns = self.shape[1]
        return _added(self._read(top * columns, bottom * columns), update.rows(top, bottom).reshape(-1)).reshape(-1, columns)

    def _read(self, first: int, last: int) -> NDArray[np.float32]:
        held = np.empty(last - first, self.dtype.storage)
        self.base.read_into(first, held)
        return rounding.to_f32(held, self.dtype)

    @property
    def _column_norms(self) -> Matrix:
        """The norm of each column, for which all of the weight is read, once."""
        with self._lock:
            return self._norms

    @cached_property
    def _norms(self) -> Matrix:
        update, total = self.update(), np.zeros(self.shape[1])
        step = max(1, _BLOCK // self.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for top in range(0, self.shape[0], step):
                for row in self._sums(update, top, min(top + step, self.shape[0])).astype(np.float64) ** 2:
                    total += row
        return np.sqrt(total).astype(np.float32)


def _added(base: NDArray[np.float32], update: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return base + update
