"""The limits a reader enforces before it allocates anything (spec/04-reader-rules.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["DEFAULT_LIMITS", "OF_THE_USER", "Limits"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on what a file may ask of its reader; a caller widens them explicitly.

    Attributes:
        index_bytes: Size of a pack's index after decompression.
        index_values: Number of JSON values in it outside `tensors`; a program's memory may hold 70 bytes for each.
        index_head_bytes: Size of the index before the list of `tensors`.
        header_bytes: Size of a safetensors header (100 MB in the safetensors library).
        tensors: Number of tensors in a pack or checkpoint.
        name_bytes: Length of a tensor or file name in UTF-8 bytes.
        ndim: Number of dimensions of a tensor.
        numel: Number of elements of a tensor.
        terms: Number of sparse terms that one tensor may add up.
        pieces: Number of boxes of base tensors that one tensor may start from.
        tables: Number of tables that chunks of exact tensors share.
        json_depth: Nesting depth of a JSON document.
        window_bytes: Window of a zstd frame.
        factor_bytes: Size of the factors of a term of low rank, after decompression.
        side_file_bytes: Size of one side file. It is held in memory whole, with its frame and, where that refers to it, the base's file.
        packed_file_bytes: Size of one side file that is packed unless its writer asks for more; at most `side_file_bytes`.
        side_files_bytes: Size of all side files together.
        side_files: Number of side files.
        heads: Number of heads of weight files, and of indices of shards, that a pack may hold; of one, `header_bytes` bounds the size.
        heads_bytes: Size of them together.
        head_values: Commas and opening brackets in all of them, beside 32 for each tensor: what bounds the objects that parsing makes.
        links: Number of packs in a chain.
    """

    index_bytes: int = 64 * MIB
    index_values: int = 1 << 16
    index_head_bytes: int = 4 * MIB
    header_bytes: int = 100_000_000
    tensors: int = 1_000_000
    name_bytes: int = 512
    ndim: int = 8
    numel: int = 1 << 48
    terms: int = 64
    pieces: int = 4096
    tables: int = 4096
    json_depth: int = 8
    window_bytes: int = 8 * MIB
    factor_bytes: int = 128 * MIB
    side_file_bytes: int = 256 * MIB
    packed_file_bytes: int = 128 * MIB
    side_files_bytes: int = 1024 * MIB
    side_files: int = 1000
    heads: int = 2048
    heads_bytes: int = 1024 * MIB
    head_values: int = 1 << 20
    links: int = 1000


DEFAULT_LIMITS = Limits()

OF_THE_USER = replace(DEFAULT_LIMITS, side_file_bytes=1 << 53, packed_file_bytes=1 << 53, side_files_bytes=1 << 53, side_files=1 << 31)
"""For side files of a folder that are looked at or copied, not packed: they are the user's own, whatever their size."""
