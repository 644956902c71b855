"""zstd frames that a reader can trust. Implements spec/02-container.md section 2.4.

`max_output_size` of python-zstandard is no limit when a frame states its size, so the stated size is
compared with the one the index promises before anything is allocated.
"""

from __future__ import annotations

import threading

import zstandard

from deltapack.errors import FormatError
from deltapack.limits import DEFAULT_LIMITS

__all__ = ["compress_frame", "decompress_frame", "pack_stream", "unpack_stream"]

_local = threading.local()
_WINDOW_LOG = DEFAULT_LIMITS.window_bytes.bit_length() - 1


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


def decompress_frame(frame: bytes, raw_length: int) -> bytes:
    """Decompress exactly one frame of exactly `raw_length` bytes of content.

    Raises:
        FormatError: Rule R10 is broken.
    """
    try:
        params = zstandard.get_frame_parameters(frame)
        if params.content_size != raw_length:
            found = "none" if params.content_size == zstandard.CONTENTSIZE_UNKNOWN else params.content_size
            raise FormatError("zstd frame states another size", rule="R10", expected=raw_length, found=found)
        if params.dict_id:
            raise FormatError("zstd frame needs a dictionary", rule="R10", found=params.dict_id)
        if raw_length == 0 or params.window_size > DEFAULT_LIMITS.window_bytes:
            found = f"content {raw_length}, window {params.window_size}"
            raise FormatError("zstd frame of this size is not allowed", rule="R10", found=found)
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        data: bytes = _local.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame is invalid: {error}", rule="R10") from error
    if len(data) != raw_length:
        raise FormatError("zstd frame holds another size", rule="R10", expected=raw_length, found=len(data))
    return data


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
