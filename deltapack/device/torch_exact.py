"""Exact chunks decoded by plain torch operations, for any device that torch knows: same bits as `deltapack.codecs.exact`.

All lanes of all tiles of a batch of chunks take a step at a time, so the longest tile says how many steps there are. Numbers travel as
int64, whose sums wrap as those of 64 bits do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from deltapack.device.exact_ready import ReadyChunk, ReadyPart, ReadySymbols
from deltapack.device.exact_resident import ResidentExact, wrong_end
from deltapack.device.segments import Stream
from deltapack.device.torch_kernels import BITS
from deltapack.format.digest import CHUNK
from deltapack.kernels.exact_numbers import Numbers, symbol_table
from deltapack.kernels.layout import EXACT_BLOCK, RANS_LOW, STEPS, TILE

__all__ = ["chunk_numbers", "decode_exact", "places_of"]

Tensor = torch.Tensor
_BYTES_AT_ONCE = 1 << 25
"""Chunks of so many bytes are decoded at once, which takes about ten times as much memory."""


def chunk_numbers(memory: Tensor, exact: ResidentExact, chunk: ReadyChunk) -> Tensor:
    """Return a view of the numbers of a chunk, `[n]` integers of their width, in the elements `[numel]` of a tensor."""
    numbers = exact.ready.numbers
    start = chunk.number * CHUNK * numbers.parts
    return memory.view(BITS[numbers.width // 8])[start : start + chunk.length]


def decode_exact(memory: Tensor, exact: ResidentExact) -> None:
    """Replace the elements of the base by those of the tensor.

    Args:
        memory: `[numel]`, contiguous, integers of the element's width.
        exact: The tensor.

    Raises:
        FormatError: Symbols or raw bits do not end where they should (rule R9). Some chunks may have been replaced.
    """
    at_once = max(1, _BYTES_AT_ONCE // (CHUNK * exact.ready.dtype.itemsize))
    for step in exact.ready.steps:
        chunks = iter(step)
        while batch := list(islice(chunks, at_once)):
            _decode_batch(memory, exact, batch)


@dataclass(frozen=True)
class _Coded:
    """Symbols to decode and, as u8, the contexts of their numbers, `[n]`."""

    symbols: ReadySymbols
    contexts: Tensor


def _decode_batch(memory: Tensor, exact: ResidentExact, chunks: Sequence[ReadyChunk]) -> None:
    mask, bases, coded = _mask(exact.ready.numbers.width), list[Tensor](), list[_Coded]()
    for chunk in chunks:
        held = chunk_numbers(memory, exact, chunk)
        base = (held if not chunk.changed.nbytes else held[places_of(exact, chunk)]).to(torch.int64) & mask
        bases.append(base)
        if chunk.dense is not None:
            coded.append(_Coded(chunk.dense, _contexts(exact, chunk.dense, base)))
        parts = [part.content for plane in chunk.planes for part in plane if isinstance(part.content, ReadySymbols)]
        coded += [_Coded(part, torch.zeros(part.length, dtype=torch.uint8, device=memory.device)) for part in parts]
    symbols = iter(_decode_symbols(exact, coded))
    for chunk, base in zip(chunks, bases, strict=True):
        found = _joined(exact, chunk, base, symbols) if chunk.dense is None else _moved(exact, chunk.dense, base, next(symbols))
        held = chunk_numbers(memory, exact, chunk)
        result = _narrow(found, held.dtype)
        if chunk.changed.nbytes:
            held[places_of(exact, chunk)] = result
        else:
            held.copy_(result)


def _mask(width: int) -> int:
    return -1 if width == 64 else (1 << width) - 1


def _narrow(found: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the low bits of int64; those of int16 and int32 above the largest are negative numbers."""
    width = 8 * dtype.itemsize
    if dtype.is_signed and width < 64:
        half = 1 << width - 1
        found = (found ^ half) - half
    return found.to(dtype)


def places_of(exact: ResidentExact, chunk: ReadyChunk) -> Tensor:
    """Return which numbers of a chunk are given anew where that is not all, `[given] int64`."""
    return exact.view(chunk.changed, torch.int32).to(torch.int64)


def _kinds(exact: ResidentExact, dense: ReadySymbols) -> Tensor | int:
    """Return the class of each number, `[n] int64`."""
    if not dense.classes.nbytes:
        return 0
    return torch.repeat_interleave(exact.view(dense.classes, torch.uint8).to(torch.int64), EXACT_BLOCK)[: dense.length]


def _contexts(exact: ResidentExact, dense: ReadySymbols, base: Tensor) -> Tensor:
    numbers = exact.ready.numbers
    return exact.view(dense.maps, torch.uint8)[_kinds(exact, dense) * 256 + ((base >> numbers.shift) & numbers.mask & 255)]


def _decode_symbols(exact: ResidentExact, coded: Sequence[_Coded]) -> list[Tensor]:
    """Return the symbols of each, `[n] uint8`."""
    found: dict[int, Tensor] = {}
    for lanes in sorted({one.symbols.lanes for one in coded}):
        own = [number for number, one in enumerate(coded) if one.symbols.lanes == lanes]
        found |= zip(own, _decode_lanes(exact, [coded[number] for number in own]), strict=True)
    return [found[number] for number in range(len(coded))]


@dataclass(frozen=True)
class _Tiles:
    """What lanes know of the tiles that they decode; `[tiles, 1] int64` but for `keys`, `table` and `words`.

    Attributes:
        lengths: Numbers of each tile.
        precision: Of its table.
        keys: Where the entries of the context of each number begin in `table`, `[tiles, width] int32`.
        table: The first slots of all contexts as a decoding table.
        words: Of all tiles.
        places: Of the first word of each tile.
    """

    lengths: Tensor
    precision: Tensor
    keys: Tensor
    table: Tensor
    words: Tensor
    places: Tensor


def _decode_lanes(exact: ResidentExact, coded: Sequence[_Coded]) -> list[Tensor]:
    """Decode symbols that have as many lanes; the tiles of all at once."""
    device, lanes = coded[0].contexts.device, coded[0].symbols.lanes
    lengths, precisions, counts, tables, keys, at = list[int](), list[int](), list[int](), list[Tensor](), list[Tensor](), 0
    width = -(-max(min(TILE, one.symbols.length) for one in coded) // lanes) * lanes
    for one in coded:
        symbols = one.symbols
        own = symbols.lengths.tolist()
        lengths += own
        precisions += [symbols.precision] * len(own)
        counts += symbols.counts.tolist()
        padded = torch.zeros(len(own) * width, dtype=torch.int32, device=device)
        padded[: symbols.length] = (one.contexts.to(torch.int32) << symbols.precision) + at
        keys.append(padded.view(len(own), width))
        tables.append(_decoding_table(exact, symbols))
        at += len(tables[-1])
    columns = torch.tensor([lengths, precisions, counts], dtype=torch.int64, device=device)[:, :, None]
    words = torch.cat([exact.view(one.symbols.words, torch.int16) for one in coded] + [torch.zeros(1, dtype=torch.int16, device=device)])
    states = torch.cat([exact.view(one.symbols.states, torch.int32).view(-1, lanes) for one in coded])
    tiles = _Tiles(columns[0], columns[1], torch.cat(keys), torch.cat(tables), words, torch.cumsum(columns[2], 0) - columns[2])
    found, used, states = _walk(tiles, states.to(torch.int64))
    if not bool((used == columns[2]).all() & (states == RANS_LOW).all()):
        raise wrong_end(exact.ready)
    ends = torch.cumsum(torch.tensor([len(one.symbols.counts) for one in coded]), 0).tolist()
    return [found[end - len(one.symbols.counts) : end].reshape(-1)[: one.symbols.length] for end, one in zip(ends, coded, strict=True)]


def _decoding_table(exact: ResidentExact, symbols: ReadySymbols) -> Tensor:
    """Return what `deltapack.kernels.reference.decoding_table` does, as int64."""
    total = 1 << symbols.precision
    firsts = exact.view(symbols.firsts, torch.int16).view(-1, 256).to(torch.int64)
    every = torch.diff(firsts, dim=1, append=torch.full((len(firsts), 1), total, device=firsts.device)).reshape(-1)
    size = len(firsts) * total
    entries = (torch.arange(len(every), device=firsts.device) & 255) | ((every - 1) << 8)
    starts = torch.repeat_interleave(torch.cumsum(every, 0) - every, every, output_size=size)
    slots = torch.arange(size, device=firsts.device) - starts
    return torch.repeat_interleave(entries, every, output_size=size) | (slots << 20)


def _walk(tiles: _Tiles, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return symbols `[tiles, width] uint8`, how many words each tile used `[tiles, 1]`, and its last states `[tiles, lanes]`."""
    lanes, width, last = states.shape[1], tiles.keys.shape[1], len(tiles.words) - 1
    out = torch.zeros((len(states), width), dtype=torch.uint8, device=states.device)
    slots, lane = (1 << tiles.precision) - 1, torch.arange(lanes, device=states.device)
    used = torch.zeros_like(tiles.places)
    for at in range(0, width, lanes):
        there = lane + at < tiles.lengths
        entry = tiles.table[tiles.keys[:, at : at + lanes] + (states & slots)]
        out[:, at : at + lanes] = (entry & 255).to(torch.uint8)
        state = (((entry >> 8) & 4095) + 1) * (states >> tiles.precision) + (entry >> 20)
        empty = there & (state < RANS_LOW)
        order = torch.cumsum(empty, 1)
        place = torch.clamp(tiles.places + used + order - 1, 0, last)
        state = torch.where(empty, (state << 16) | (tiles.words[place].to(torch.int64) & 0xFFFF), state)
        states = torch.where(there, state, states)
        used = used + order[:, -1:]
    return out, used, states


def _moved(exact: ResidentExact, dense: ReadySymbols, base: Tensor, symbols: Tensor) -> Tensor:
    """Return the numbers whose differences from those of the base are known, `[n] int64`."""
    numbers, picked = exact.ready.numbers, symbols.to(torch.int64)
    if dense.steps.nbytes:
        steps = exact.view(dense.steps, torch.int64)
        base = (base + steps[_kinds(exact, dense) * STEPS + ((base >> numbers.stairs) & (STEPS - 1))]) & _mask(numbers.width)
    table = symbol_table(numbers, dense.far)
    starts = torch.from_numpy(table.starts.view("int64")).to(base.device)
    widths = torch.from_numpy(table.widths).to(base.device, torch.int64)[picked]
    magnitudes = starts[picked] + _raw_bits(exact, dense, widths)
    half, mask, sign = 1 << numbers.width - 1, _mask(numbers.width), numbers.width - 1
    is_negative = (picked & 1).bool() ^ (((base >> sign) & 1).bool() if numbers.signed else False)
    total = (_ordinals(base, numbers) + torch.where(is_negative, -magnitudes, magnitudes)) & mask
    out = _ordinals(total, numbers)
    return out if dense.far < 0 else torch.where(picked >= 128, ((base & half) ^ half) | magnitudes, out)


def _ordinals(bits: Tensor, numbers: Numbers) -> Tensor:
    """Turn sign and magnitude into two's complement, or back."""
    if not numbers.signed:
        return bits
    return torch.where(((bits >> numbers.width - 1) & 1).bool(), bits ^ ((1 << numbers.width - 1) - 1), bits)


def _raw_bits(exact: ResidentExact, dense: ReadySymbols, widths: Tensor) -> Tensor:
    """Return the raw bits of each number as a number, `[n] int64`.

    Raises:
        FormatError: They are not as many as each tile has (rule R9).
    """
    bits, lengths = (torch.from_numpy(column).to(widths.device) for column in (dense.bits, dense.lengths))
    ends = torch.cumsum(widths, 0)
    lasts = ends[torch.cumsum(lengths, 0) - 1]
    if not torch.equal(torch.diff(lasts, prepend=torch.zeros_like(lasts[:1])), bits):
        raise wrong_end(exact.ready)
    whole = (bits + 63) // 64 * 64
    moved = torch.cumsum(whole, 0) - whole - (lasts - bits)
    at = ends - widths + torch.repeat_interleave(moved, lengths, output_size=dense.length)
    words = torch.cat([exact.view(dense.raw, torch.int32), torch.zeros(3, dtype=torch.int32, device=widths.device)])
    word, shift = at >> 5, at & 31
    low, middle, high = ((words[word + place].to(torch.int64) & 0xFFFFFFFF) for place in range(3))
    value = (low >> shift) | (middle << (32 - shift)) | ((high << (63 - shift)) << 1)
    return value & ((1 << widths) - 1)


def _joined(exact: ResidentExact, chunk: ReadyChunk, base: Tensor, symbols: Iterator[Tensor]) -> Tensor:
    """Return the numbers that byte planes are of, `[n] int64`; coded parts are taken from `symbols`."""
    numbers, whole = exact.ready.numbers, torch.zeros_like(base)
    for number, plane in enumerate(chunk.planes):
        parts = [_part(exact, part, symbols) for part in plane]
        whole |= torch.cat(parts).to(torch.int64) << 8 * number
    if chunk.moves:
        return whole + base
    if not numbers.signed:
        return whole
    rest = numbers.width - 1
    return ((whole >> 1) & ((1 << rest) - 1)) | ((whole & 1) << rest)


def _part(exact: ResidentExact, part: ReadyPart, symbols: Iterator[Tensor]) -> Tensor:
    if not isinstance(part.content, Stream):
        return next(symbols)
    found = exact.view(part.content, torch.uint8)
    return found if part.content.nbytes == part.length else found.expand(part.length)
