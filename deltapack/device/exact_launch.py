"""Exact tensors as launches of Triton kernels: many chunks of many tensors in each, as far as what they need beside is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deltapack.device import triton_exact
from deltapack.device.exact_ready import ReadyChunk, ReadyExact, ReadyPart, ReadySymbols
from deltapack.device.exact_resident import ResidentExact, wrong_end
from deltapack.device.segments import Stream
from deltapack.format.digest import CHUNK
from deltapack.kernels.exact_numbers import Numbers
from deltapack.kernels.layout import TILE, Counts

__all__ = ["JOIN_BLOCK", "TABLE_BLOCK", "constants_of", "launch_exact"]

Table = NDArray[np.int64]
_SCRATCH_BYTES = 1 << 27
"""Decoding tables and planes of one batch take no more, or are those of one chunk."""
_NO_VIOLATION = 1 << 62
TABLE_BLOCK, JOIN_BLOCK = 512, 1024
_FAR_BELOW = 1 << 62
_TABLE, _TARGET = triton_exact.SYMBOLS.index("table"), triton_exact.SYMBOLS.index("target")


@dataclass(frozen=True)
class _Chunk:
    """A chunk, and the address of its first number."""

    exact: ResidentExact
    chunk: ReadyChunk
    address: int

    @property
    def symbols(self) -> list[ReadySymbols]:
        """All that is coded."""
        return [part.content for plane in self.chunk.planes for part in plane if isinstance(part.content, ReadySymbols)] + (
            [] if self.chunk.dense is None else [self.chunk.dense]
        )

    @property
    def scratch(self) -> int:
        """Bytes that are needed to decode it: decoding tables, and coded planes."""
        planes = sum(_padded(one.length) for one in self.symbols) if self.chunk.planes else 0
        return planes + sum(4 * one.contexts << one.precision for one in self.symbols)


def _padded(nbytes: int) -> int:
    return -(-nbytes // 16) * 16


def launch_exact(todo: Sequence[tuple[torch.Tensor, ResidentExact]], device: torch.device, warps: int) -> None:
    """Replace the elements of bases by those of tensors.

    Args:
        todo: Elements of each base, `[numel]`, contiguous, integers of their width; and the tensor.
        device: Where they are.
        warps: Warps of a program; each decodes as many tiles as fill it.

    Raises:
        FormatError: Symbols or raw bits do not end where they should (rule R9). Other tensors may have been replaced.
    """
    owners: list[list[ReadyExact]] = []
    found: list[torch.Tensor] = []
    for step in range(max((len(exact.ready.steps) for _, exact in todo), default=0)):
        kinds = dict[Numbers, list[_Chunk]]()
        for memory, exact in todo:
            start, stride = memory.data_ptr(), CHUNK * exact.ready.dtype.itemsize
            given = exact.ready.steps[step] if step < len(exact.ready.steps) else ()
            kinds.setdefault(exact.ready.numbers, []).extend(_Chunk(exact, chunk, start + chunk.number * stride) for chunk in given)
        for numbers, chunks in kinds.items():
            for batch in _batches(chunks):
                launch = _Batch(numbers, device, warps)
                for chunk in batch:
                    launch.add(chunk)
                found += launch.run()
                owners += launch.owners
    if found:
        for number, tile in enumerate(torch.cat(found).tolist()):
            if tile != _NO_VIOLATION:
                raise wrong_end(owners[number][tile])


def _batches(chunks: Sequence[_Chunk]) -> Iterator[list[_Chunk]]:
    batch, nbytes = list[_Chunk](), 0
    for chunk in chunks:
        if batch and nbytes + chunk.scratch > _SCRATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(chunk)
        nbytes += chunk.scratch
    if batch:
        yield batch


class _Batch:
    """The rows of the launches that decode some chunks; addresses in scratch memory are offsets until `run`.

    Args:
        numbers: What the chunks are made of.
        device: Where they are.
        warps: How many warps a program has, and how many times the tiles that fill one.

    Attributes:
        owners: For each launch that may find something wrong, what its tiles are of.
    """

    def __init__(self, numbers: Numbers, device: torch.device, warps: int) -> None:
        self.owners: list[list[ReadyExact]] = []
        self._numbers, self._device, self._warps = numbers, device, warps
        self._scratch = 0
        self._tables: list[Table] = []
        self._joined: list[Table] = []
        self._symbols: dict[tuple[bool, int], list[tuple[ReadyExact, Table]]] = {}

    def add(self, chunk: _Chunk) -> None:
        """Add a chunk."""
        if chunk.chunk.dense is not None:
            self._add_symbols(chunk, chunk.chunk.dense, is_plane=False)
        else:
            self._add_planes(chunk)

    def _reserve(self, nbytes: int) -> int:
        self._scratch += _padded(nbytes)
        return self._scratch - _padded(nbytes)

    def _add_symbols(self, chunk: _Chunk, symbols: ReadySymbols, is_plane: bool) -> int:
        """Add coded symbols; return where they are put as bytes of a plane, in scratch memory."""
        table = self._reserve(4 * symbols.contexts << symbols.precision)
        contexts = np.arange(symbols.contexts)
        tables = np.full((symbols.contexts, len(triton_exact.TABLES)), symbols.precision, np.int64)
        tables[:, 0] = chunk.exact.address(symbols.firsts) + 512 * contexts
        tables[:, 1] = table + (4 * contexts << symbols.precision)
        self._tables.append(tables)
        target = self._reserve(symbols.length) if is_plane else 0
        rows = _symbol_rows(chunk, symbols, is_plane)
        rows[:, _TABLE], rows[:, _TARGET] = table, target
        self._symbols.setdefault((is_plane, symbols.lanes), []).append((chunk.exact.ready, rows))
        return target

    def _add_planes(self, chunk: _Chunk) -> None:
        starts = np.arange(0, chunk.chunk.given, TILE)
        rows = np.zeros((len(starts), triton_exact.PLANES + 16), np.int64)
        rows[:, 0], rows[:, 1] = starts, np.minimum(TILE, chunk.chunk.given - starts)
        rows[:, 2], rows[:, 3], rows[:, 4] = chunk.address, chunk.exact.address(chunk.chunk.changed), chunk.chunk.moves
        for number, plane in enumerate(chunk.chunk.planes):
            column = triton_exact.PLANES + 2 * number
            places = np.array([self._place(chunk, part) for part in plane], np.int64)
            rows[:, column : column + 2] = places
            if len(plane) == 1:
                rows[:, column] += starts * places[0, 1]
        self._joined.append(rows)

    def _place(self, chunk: _Chunk, part: ReadyPart) -> tuple[int, int]:
        """Return where bytes of a plane lie, in scratch memory less than 0, and how far from each other."""
        if isinstance(part.content, Stream):
            return chunk.exact.address(part.content), int(part.content.nbytes == part.length)
        return self._add_symbols(chunk, part.content, is_plane=True) - _FAR_BELOW, 1

    def run(self) -> list[torch.Tensor]:
        """Launch; return for each of `owners` a tensor with the number of the first tile that is wrong."""
        scratch = torch.empty(self._scratch, dtype=torch.uint8, device=self._device)
        start = scratch.data_ptr()
        if self._tables:
            tables = np.concatenate(self._tables)
            tables[:, 1] += start
            triton_exact.expand_tables[(len(tables),)](self._send(tables), BLOCK=TABLE_BLOCK)
        planes, dense = ([lanes for of_planes, lanes in sorted(self._symbols) if of_planes == wanted] for wanted in (True, False))
        found = [self._decode(True, lanes, start) for lanes in planes]
        if self._joined:
            self._join(start)
        return found + [self._decode(False, lanes, start) for lanes in dense]

    def _decode(self, is_plane: bool, lanes: int, scratch: int) -> torch.Tensor:
        parts, numbers = self._symbols[is_plane, lanes], self._numbers
        rows = np.concatenate([own for _, own in parts])
        rows[:, _TABLE] += scratch
        rows[:, _TARGET] += scratch
        self.owners.append([ready for ready, own in parts for _ in range(len(own))])
        found = torch.full((1,), _NO_VIOLATION, dtype=torch.int64, device=self._device)
        constants = constants_of(numbers, is_plane, lanes, self._warps)
        programs = -(-len(rows) // constants["TILES"])
        triton_exact.decode_symbols[(programs,)](self._send(rows), found, len(rows), **constants, num_warps=self._warps)
        return found

    def _join(self, scratch: int) -> None:
        rows = np.concatenate(self._joined)
        places = rows[:, triton_exact.PLANES :: 2]
        places[places < 0] += _FAR_BELOW + scratch
        most = -(-int(rows[:, 1].max()) // JOIN_BLOCK)
        triton_exact.join_planes[(len(rows), most)](
            self._send(rows), WIDTH=self._numbers.width, SIGNED=self._numbers.signed, BLOCK=JOIN_BLOCK
        )

    def _send(self, rows: Table) -> torch.Tensor:
        return torch.from_numpy(rows).to(self._device)


def constants_of(numbers: Numbers, is_plane: bool, lanes: int, warps: int) -> dict[str, int]:
    """Return what `deltapack.device.triton_exact.decode_symbols` is compiled for; bytes of planes are alike whatever the numbers are."""
    own = Numbers(8, 1, 0, 0, 0, 7) if is_plane else numbers
    return {
        "WIDTH": own.width,
        "SIGNED": own.signed,
        "SHIFT": own.shift,
        "MASK": own.mask,
        "HEAD": own.head,
        "STAIRS": own.stairs,
        "FAR": own.far,
        "PLANE": int(is_plane),
        "LANES": lanes,
        "TILES": warps * triton_exact.WARP // lanes,
    }


def _symbol_rows(chunk: _Chunk, symbols: ReadySymbols, is_plane: bool) -> Table:
    """Return the rows of the tiles of symbols, see `deltapack.device.triton_exact.SYMBOLS`, but for what lies in scratch memory."""
    lengths, exact = symbols.lengths, chunk.exact
    whole, order = -(-symbols.bits // 64) * 8, np.arange(len(lengths))
    columns: dict[str, int | Counts] = {
        "first": order * TILE,
        "length": lengths,
        "words": exact.address(symbols.words) + 2 * (np.cumsum(symbols.counts) - symbols.counts),
        "count": symbols.counts,
        "raw": exact.address(symbols.raw) + np.cumsum(whole) - whole,
        "bits": symbols.bits,
        "states": exact.address(symbols.states) + 4 * symbols.lanes * order,
        "table": 0,
        "maps": exact.address(symbols.maps),
        "classes": exact.address(symbols.classes),
        "steps": exact.address(symbols.steps),
        "changed": 0 if is_plane else exact.address(chunk.chunk.changed),
        "base": 0 if is_plane else chunk.address,
        "target": 0,
        "precision": symbols.precision,
        "far": symbols.far,
    }
    rows = np.empty((len(lengths), len(triton_exact.SYMBOLS)), np.int64)
    for number, name in enumerate(triton_exact.SYMBOLS):
        rows[:, number] = columns[name]
    return rows
