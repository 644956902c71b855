"""The positions and values of a chunk of a term in plain torch operations: same bits as `deltapack.kernels.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deltapack.codecs import values
from deltapack.device import torch_kernels
from deltapack.device.ready import KINDS
from deltapack.device.resident import ResidentTerm
from deltapack.errors import FormatError
from deltapack.format.digest import CHUNK, TILES_PER_CHUNK
from deltapack.format.table import tile_lengths
from deltapack.kernels.layout import TILE
from deltapack.kernels.reference.strata import ROUNDS, strata_of, stride_of

__all__ = ["decode_chunk", "factor_values", "stratified_positions", "wrong_count"]

Tensor = torch.Tensor


def decode_chunk(resident: ResidentTerm, chunk: int, factor: float) -> tuple[Tensor, Tensor]:
    """Return the positions `[n] int64`, from the start of the chunk, and values `[n] f32` of a chunk of a term.

    A trit of 0 keeps nothing, so its position is not among them.

    Raises:
        FormatError: A random mask keeps another number of elements than its table says (rule R9).
    """
    term, first = resident.ready.term, chunk * CHUNK
    lengths = tile_lengths(min(CHUNK, resident.ready.entry.common - first))
    scalar = torch.tensor(factor, dtype=torch.float32, device=resident.rows.device)
    if term.is_factors:
        positions = torch.arange(sum(lengths), device=scalar.device)
        return positions, _factor_values(resident, positions + first, scalar)
    positions = _kept_rows(resident, _positions(resident, chunk, lengths), first)
    counts = torch.from_numpy(resident.column("count")[_tiles(chunk)].copy()).to(scalar.device)
    if term.index_codec.kept == "random" and not torch.equal(_counts(positions, len(lengths)), counts):
        raise wrong_count(resident)
    codec, nnz = term.value_codec, len(positions)
    packed = _stream(resident, chunk, "codes", values.codes_raw_length(term.values, nnz))
    if not term.scales:
        scale_bytes = values.scales_raw_length(resident.column("count")[_tiles(chunk)]) if codec.grouped else 0
        scales = _stream(resident, chunk, "scales", scale_bytes)
        return positions, torch_kernels.decode_values(term.values, packed, scales, counts, nnz, factor)
    codes = torch_kernels.unpack(codec.form, codec.bits, packed, nnz)
    found = codes.to(torch.float32) * _steps(resident, positions + first, scalar)
    return (positions[codes != 0], found[codes != 0]) if codec.form == "trits" else (positions, found)


def _tiles(chunk: int) -> slice:
    return slice(chunk * TILES_PER_CHUNK, (chunk + 1) * TILES_PER_CHUNK)


def _stream(resident: ResidentTerm, chunk: int, name: str, nbytes: int) -> Tensor:
    """Return so many bytes of a chunk's stream, `[n] uint8`."""
    segment, start = (int(resident.column(column)[_tiles(chunk)][0]) for column in ("segment", name))
    return resident.segments[segment][start : start + nbytes]


def _positions(resident: ResidentTerm, chunk: int, lengths: Sequence[int]) -> Tensor:
    """Return what the index codec keeps, rows that are dropped among it where nothing is stored."""
    term, device, extent = resident.ready.term, resident.rows.device, sum(lengths)
    kind, items = resident.column("kind")[_tiles(chunk)][0], resident.column("items")[_tiles(chunk)]
    if kind == KINDS["seeded"]:
        return torch_kernels.sample_positions(term.key, term.keep, chunk * TILES_PER_CHUNK, lengths, device)[0]
    if kind == KINDS["stratified"]:
        return stratified_positions(term.key, term.keep, chunk * TILES_PER_CHUNK, lengths, device)
    if kind == KINDS["bitmap"]:
        return torch_kernels.positions_from_bits(_stream(resident, chunk, "index", -(-extent // 8)), extent)
    if kind == KINDS["all"]:
        return torch.arange(extent, device=device)
    wide = kind == KINDS["wide gaps"]
    gaps = _stream(resident, chunk, "index", int(items.sum()) * (2 if wide else 1))
    gaps = gaps.view(torch.int16).to(torch.int32) & 0xFFFF if wide else gaps
    return torch_kernels.positions_from_gaps(gaps, torch.from_numpy(items.copy()).to(device), escapes=not wide)


def stratified_positions(key: int, keep: int, first_tile: int, lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the stratified mask `[nnz] int64` of consecutive tiles, from the start of the first one (spec/codecs/index.md).

    Args:
        key: Mask key, 64 bits.
        keep: K, the density times 2^32, in [2^16, 2^32).
        first_tile: Number of the first tile in its tensor.
        lengths: Elements of each tile; all but the last have as many as a tile.
        device: Where to.
    """
    step, tiles = stride_of(keep), len(lengths)
    strata = torch.arange(strata_of(keep, max(lengths, default=0)) + 1, dtype=torch.int64, device=device)
    begin = strata * step >> 16
    numbers = torch.arange(first_tile, first_tile + tiles, dtype=torch.int64, device=device)[:, None]
    words = torch_kernels.philox(key, numbers, torch.arange(-(-len(begin) // 8), dtype=torch.int64, device=device)[None, :], 1, ROUNDS)
    samples = torch.stack([words & 0xFFFF, words >> 16], dim=-1).reshape(tiles, -1)[:, : len(begin) - 1]
    within = begin[:-1] + (samples * (begin[1:] - begin[:-1]) >> 16)
    kept = within < torch.tensor(lengths, dtype=torch.int64, device=device)[:, None]
    return (within + torch.arange(tiles, dtype=torch.int64, device=device)[:, None] * TILE)[kept]


def _kept_rows(resident: ResidentTerm, positions: Tensor, first: int) -> Tensor:
    """Leave out what lies in dropped rows."""
    if resident.ready.term.lines is None:
        return positions
    row = torch.div(positions + first, resident.ready.width, rounding_mode="floor")
    return positions[resident.part("rows", torch.float32)[row] != 0]


def _counts(positions: Tensor, tiles: int) -> Tensor:
    ends = torch.arange(0, tiles + 1, dtype=torch.int64, device=positions.device) * TILE
    return torch.diff(torch.searchsorted(positions, ends))


def _steps(resident: ResidentTerm, elements: Tensor, factor: Tensor) -> Tensor:
    """Return what the codes of elements of the tensor are multiplied with, `[n] f32`, or one for all."""
    term, width = resident.ready.term, resident.ready.width
    scale = torch.tensor(term.scale, dtype=torch.float32, device=factor.device)
    if term.scales == "tensor":
        return scale * factor
    row = torch.div(elements, width, rounding_mode="floor")
    size = resident.part("rows", torch.float32)[row]
    if term.scales == "outer":
        size = size * resident.part("columns", torch.float32)[elements - row * width]
    return (size * scale) * factor


def _factor_values(resident: ResidentTerm, elements: Tensor, factor: Tensor) -> Tensor:
    """Return the values `[n] f32` of consecutive elements of the tensor."""
    ready = resident.ready
    row = torch.div(elements, ready.width, rounding_mode="floor")
    left = resident.part("left", torch.float32).view(ready.term.rank, -1)[:, row[0] : row[-1] + 1]
    right = resident.part("right", torch.float32).view(ready.term.rank, -1)
    sizes = resident.part("sizes", torch.float32) * factor
    return factor_values(left * sizes[:, None], right, row - row[0], elements - row * ready.width)


def factor_values(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the sums of products `[n] f32`, each rounded, in order (spec/06-arithmetic.md section 6.1).

    Args:
        left: `[rank, rows] f32`.
        right: `[rank, columns] f32`.
        row: `[n] int64`.
        column: `[n] int64`.
    """
    total = left[0][row] * right[0][column]
    for one, other in zip(left[1:], right[1:], strict=True):
        total = total + one[row] * other[column]
    return total


def wrong_count(resident: ResidentTerm) -> FormatError:
    """Return the error for a random mask that keeps another number of elements than its table says."""
    return FormatError(
        f"the {resident.ready.term.index} index keeps another number of elements than the table says",
        path=resident.ready.path,
        tensor=resident.ready.entry.name,
        rule="R9",
    )
