"""zstd frames that a reader can trust. Implements spec/02-container.md section 2.4.

Header and block headers are checked here, byte by byte: versions of libzstd differ in what they let pass (a block longer than the window, a
dictionary with the number 0), `max_output_size` of python-zstandard is no limit when a frame states its size, and nothing may be allocated
before the stated size was compared with the one the index promises.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import zstandard

from deltapack.errors import FormatError
from deltapack.limits import DEFAULT_LIMITS

__all__ = [
    "check_frame_after",
    "compress_after",
    "compress_frame",
    "decompress_after",
    "decompress_frame",
    "pack_stream",
    "unpack_stream",
]

_local = threading.local()
_WINDOW_LOG = DEFAULT_LIMITS.window_bytes.bit_length() - 1
_QUICK, _BEST, _SMALL, _FAR_SMALLER = 12, 19, 1 << 20, 50
"""Levels for a frame that refers to what stands before it; the second, slow one is for little that the first did not do away with."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY, _CHECKSUM, _RESERVED, _UNUSED, _SINGLE_SEGMENT = 0b11, 0b100, 0b1000, 0b10000, 0b100000
"""Bits of the frame header descriptor (RFC 8878, 3.1.1.1.1); the two above them say how many bytes the content size takes."""
_BLOCK_BYTES = 128 << 10
"""A block is never longer than this or the window, whichever is less."""


def compress_frame(data: bytes, level: int) -> bytes:
    """Compress into one frame that states its content size. Same bytes for the same zstd version."""
    compressors = _local.__dict__.setdefault("compressors", {})
    if level not in compressors:
        params = zstandard.ZstdCompressionParameters.from_level(level)
        if params.window_log > _WINDOW_LOG:
            params = zstandard.ZstdCompressionParameters.from_level(level, window_log=_WINDOW_LOG)
        compressors[level] = zstandard.ZstdCompressor(compression_params=params)
    frame: bytes = compressors[level].compress(data)
    return frame


def compress_after(before: bytes, data: bytes) -> bytes:
    """Compress into one frame whose matches may begin in `before`, all of which stays in reach. Same bytes for the same zstd version."""
    frame = _compress_after(before, data, _QUICK)
    if len(data) > _SMALL or len(frame) < len(data) // _FAR_SMALLER:
        return frame
    return min(frame, _compress_after(before, data, _BEST), key=len)


def _compress_after(before: bytes, data: bytes, level: int) -> bytes:
    window = min(max((len(before) + len(data)).bit_length(), 10), 31)
    options = {"source_size": len(data), "dict_size": len(before), "window_log": window}
    if level == _QUICK:  # with tables as large as what stands before, it finds as much in 30 MB as levels that take minutes for them
        options |= dict.fromkeys(("hash_log", "chain_log"), min(max(len(before).bit_length(), 17), 26))
    params = zstandard.ZstdCompressionParameters.from_level(level, **options)
    frame: bytes = zstandard.ZstdCompressor(compression_params=params, dict_data=_as_prefix(before)).compress(data)
    return frame


def _as_prefix(before: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if before else None


def check_frame_after(frame: bytes, raw_length: int) -> None:
    """Check the headers of a frame that refers to what stands before it.

    Raises:
        FormatError: Rule R10 is broken.
    """
    _check_blocks(frame, *_check_header(frame, raw_length, refers=True))


def decompress_after(before: bytes, frame: bytes, raw_length: int) -> bytes:
    """Invert `compress_after`.

    Raises:
        FormatError: Rule R10 is broken.
    """
    check_frame_after(frame, raw_length)
    return _decompress(zstandard.ZstdDecompressor(dict_data=_as_prefix(before)), frame, raw_length)


def decompress_frame(frame: bytes, raw_length: int) -> bytes:
    """Decompress exactly one frame of exactly `raw_length` bytes of content.

    Raises:
        FormatError: Rule R10 is broken.
    """
    _check_blocks(frame, *_check_header(frame, raw_length))
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _decompress(_local.decompressor, frame, raw_length)


def _decompress(decompressor: zstandard.ZstdDecompressor, frame: bytes, raw_length: int) -> bytes:
    try:
        data: bytes = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame is invalid: {error}", rule="R10") from error
    if len(data) != raw_length:
        raise FormatError("zstd frame holds another size", rule="R10", expected=raw_length, found=len(data))
    return data


def _check_header(frame: bytes, raw_length: int, *, refers: bool = False) -> tuple[int, int]:
    """Return where the first block begins and how long a block may be; one that refers to what stands before has its content as window."""
    usual = _usual_header(raw_length)
    if usual is not None and frame.startswith(usual):  # a chunk has two or three frames, and this is a fifth of the time of what follows
        return len(usual), min(raw_length, _BLOCK_BYTES)
    if frame[:4] != _MAGIC:
        raise FormatError("not a zstd frame", rule="R10", expected=_MAGIC.hex(), found=bytes(frame[:4]).hex())
    descriptor = frame[4] if len(frame) > 4 else 0
    single = bool(descriptor & _SINGLE_SEGMENT)
    size_bytes = (int(single), 2, 4, 8)[descriptor >> 6]
    start = 6 - single + size_bytes
    if descriptor & _DICTIONARY:
        raise FormatError("zstd frame has a field for a dictionary", rule="R10", found=f"descriptor {descriptor:#04x}")
    if descriptor & (_RESERVED | _UNUSED):
        raise FormatError("zstd frame has bits set that mean nothing", rule="R10", found=f"descriptor {descriptor:#04x}")
    if len(frame) < start:
        raise FormatError("zstd frame is cut in its header", rule="R10", expected=f"{start} bytes", found=len(frame))
    size = int.from_bytes(frame[start - size_bytes : start], "little") + (256 if size_bytes == 2 else 0)
    if size_bytes == 0 or size != raw_length:
        raise FormatError("zstd frame states another size", rule="R10", expected=raw_length, found=size if size_bytes else "none")
    window = size if single else (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3))
    most = DEFAULT_LIMITS.side_file_bytes if refers else DEFAULT_LIMITS.window_bytes
    if size == 0 or not min(size, _BLOCK_BYTES) <= window <= most or (refers and not single):
        raise FormatError("zstd frame of this size is not allowed", rule="R10", found=f"content {size}, window {window}")
    return start, min(window, _BLOCK_BYTES)


@lru_cache(maxsize=1 << 12)
def _usual_header(size: int) -> bytes | None:
    """Return what `_check_header` would find right of a frame of one segment without a checksum, as libzstd writes for small contents."""
    if not 0 < size <= DEFAULT_LIMITS.window_bytes:
        return None
    flag, number, width = (0, size, 1) if size < 256 else (1, size - 256, 2) if size < 65_792 else (2, size, 4)
    return _MAGIC + bytes([flag << 6 | _SINGLE_SEGMENT]) + number.to_bytes(width, "little")


def _check_blocks(frame: bytes, at: int, most: int) -> None:
    """Walk the block headers: the last block, and the checksum if there is one, end with the frame."""
    last = False
    while not last:
        header = int.from_bytes(frame[at : at + 3], "little")  # a cut one is read as smaller, and found to be cut below
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3 or size > most:
            found = f"a block of type {kind} and {size} bytes"
            raise FormatError("zstd frame has a block that is not allowed", rule="R10", expected=f"at most {most} bytes", found=found)
        at += 3 + (1 if kind == 1 else size)  # type 1 repeats one byte
        if at > len(frame):
            raise FormatError("zstd frame is cut", rule="R10", expected=f"at least {at} bytes", found=len(frame))
    end = at + (4 if frame[4] & _CHECKSUM else 0)
    if end != len(frame):
        raise FormatError("zstd frame does not end with its last block", rule="R10", expected=f"{end} bytes", found=len(frame))


def pack_stream(raw: bytes, level: int = 1) -> bytes:
    """Return `raw`, or its frame where that is smaller."""
    frame = compress_frame(raw, level) if raw else raw
    return frame if len(frame) < len(raw) else raw


def unpack_stream(stored: bytes, raw_length: int) -> bytes:
    """Invert `pack_stream`.

    Raises:
        FormatError: Rule R10 is broken.
    """
    return stored if len(stored) == raw_length else decompress_frame(stored, raw_length)
