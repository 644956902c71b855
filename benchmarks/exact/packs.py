"""What the codec makes of a pair, checked to come back bit for bit."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.exact.inputs import Case, chunks_of
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk

__all__ = ["Packed", "packed"]


@dataclass(frozen=True)
class Packed:
    """Bytes, and CPU seconds of encoding and decoding."""

    size: int
    encode: float
    decode: float


def packed(case: Case) -> Packed:
    """Encode and decode all chunks of a pair.

    Raises:
        RuntimeError: One did not come back.
    """
    size, encode, decode = 0, 0.0, 0.0
    for chunk in chunks_of(case.tensors):
        times = [time.thread_time()]
        data = encode_exact_chunk(chunk.base, chunk.tuned, case.dtype)
        times.append(time.thread_time())
        back = decode_exact_chunk(data, chunk.base, case.dtype, len(chunk.tuned))
        times.append(time.thread_time())
        if back.tobytes() != chunk.tuned.tobytes():
            raise RuntimeError(f"{case.name}: an exact chunk did not come back")
        size, encode, decode = size + len(data), encode + times[1] - times[0], decode + times[2] - times[1]
    return Packed(size, encode, decode)
