"""The tensors of an adapter, by PEFT's names, as one file; factors wait in a file beside it until all ranks are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from deltapack.checkpoint import open_writer, plan_shards
from deltapack.dtypes import BY_NAME, DType
from deltapack.exporting.lowrank import LowRank
from deltapack.exporting.opening import Opened
from deltapack.exporting.routing import Factored, Routes
from deltapack.format.atomic import writing
from deltapack.format.digest import CHUNK
from deltapack.kernels import rounding

__all__ = ["START", "Spool", "write_tensors"]

START = "base_model.model."
"""What names of tensors in an adapter begin with."""


@dataclass
class Spool:
    """Factors on the disk.

    Attributes:
        path: The file.
        file: The same, open.
        places: Offset and rank by the name of the weight.
    """

    path: Path
    file: BinaryIO
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    @contextmanager
    def opened(path: Path) -> Iterator[Spool]:
        """Make the file."""
        with ExitStack() as stack:
            with writing(path):
                file = stack.enter_context(open(path, "w+b"))
            yield Spool(path, file)

    def put(self, name: str, made: LowRank) -> None:
        """Take the factors of a weight."""
        self.places[name] = self.file.seek(0, 2), made.rank
        with writing(self.path):
            self.file.write(made.left.tobytes())
            self.file.write(made.right.tobytes())

    def take(self, item: Factored) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return them, `[rows, rank]` and `[rank, columns] f32`."""
        offset, rank = self.places[item.name]
        with writing(self.path):
            self.file.seek(offset)
            values = np.frombuffer(self.file.read(4 * rank * (item.rows + item.columns)), "<f4")
        split = item.rows * rank
        return values[:split].reshape(item.rows, rank), values[split:].reshape(rank, item.columns)

    def rank(self, item: Factored) -> int:
        """Return the rank of the factors of a weight."""
        return self.places[item.name][1]

    def remove(self) -> None:
        """Close the file and remove it."""
        with writing(self.path):
            self.file.close()
            self.path.unlink()


def write_tensors(path: Path, opened: Opened, routes: Routes, spool: Spool, dtype: DType) -> int:
    """Write the tensors of an adapter; return the size of the file."""
    factors = [(name, item, shape) for item in routes.factored for name, shape in _names(item, spool.rank(item)).items()]
    lora = {item.module for item in routes.factored}
    whole = {f"{START}{module}{'.base_layer' if module in lora else ''}.bias": name for name, module in routes.biases.items()}
    whole |= {f"{START}{module}.{leaf}": name for module, parts in routes.saved.items() for leaf, name in parts.items()}
    infos = opened.restored.tensors
    tensors = [(name, dtype, shape) for name, _, shape in factors]
    tensors += [(name, infos[own].dtype, infos[own].shape) for name, own in whole.items()]
    with open_writer(path, plan_shards(tensors)) as writer:
        for item in routes.factored:
            pair = _arranged(item, *spool.take(item))
            for name, values in zip(_names(item, spool.rank(item)), pair, strict=True):
                plain = np.ascontiguousarray(values).reshape(-1)
                writer.write(name, 0, rounding.convert(plain, BY_NAME["f32"], dtype))
        for name, own in whole.items():
            for start in range(0, infos[own].numel, CHUNK):
                writer.write(name, start, opened.restored.read(own, start, min(start + CHUNK, infos[own].numel)))
    return path.stat().st_size


def _names(item: Factored, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of PEFT's factors A and B of a weight."""
    ends = ("lora_embedding_A", "lora_embedding_B") if item.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    if item.kind == "convolution":
        shapes: tuple[tuple[int, ...], ...] = (rank, *item.shape[1:]), (item.rows, rank, *(1 for _ in item.shape[2:]))
    elif item.kind == "linear":
        shapes = (rank, item.columns), (item.rows, rank)
    else:  # the weight is [in, out]
        shapes = (rank, item.rows), (item.columns, rank)
    return {f"{START}{item.module}.{end}": shape for end, shape in zip(ends, shapes, strict=True)}


def _arranged(item: Factored, left: NDArray[np.float32], right: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return A and B of `left @ right`."""
    return (right, left) if item.kind in ("linear", "convolution") else (left.T, right.T)
