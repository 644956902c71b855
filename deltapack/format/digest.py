"""Hashes of bytes, tensors and checkpoints (spec/03-index.md section 3.5).

xxh3 finds accidents at memory speed; SHA-256 gives identity. Neither is a signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import xxhash

__all__ = ["CHUNK", "NOTHING", "TILE", "TILES_PER_CHUNK", "chunk_count", "chunk_digest", "fingerprint", "hash64", "root_digest"]

TILE = 1 << 16
TILES_PER_CHUNK = 16
CHUNK = TILE * TILES_PER_CHUNK


def chunk_count(numel: int) -> int:
    """Return the number of chunks of a tensor of `numel` elements."""
    return -(-numel // CHUNK)


def hash64(data: object) -> int:
    """Return xxh3_64 of a bytes-like object or C-contiguous array."""
    return xxhash.xxh3_64_intdigest(data)  # type: ignore[arg-type]


def chunk_digest(data: object) -> bytes:
    """Return the 16-byte digest of a chunk's elements (bytes-like or C-contiguous array, little-endian)."""
    return xxhash.xxh3_128_digest(data)  # type: ignore[arg-type]


def root_digest(dtype: str, shape: Sequence[int], chunk_digests: Iterable[bytes]) -> str:
    """Return the root digest (32 hexadecimal digits) of a tensor from the digests of its chunks."""
    root = xxhash.xxh3_128(f"{dtype}\0{_dims(shape)}\0".encode())
    for digest in chunk_digests:
        root.update(digest)
    return root.hexdigest()


def fingerprint(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a checkpoint, however it is sharded.

    Args:
        tensors: Name, dtype name, shape and root digest of every tensor, in any order.
    """
    sha = hashlib.sha256()
    for name, dtype, shape, root in sorted(tensors, key=lambda row: row[0].encode()):
        sha.update(f"{name}\0{dtype}\0{_dims(shape)}\0{root}\n".encode())
    return sha.hexdigest()


NOTHING = hashlib.sha256().hexdigest()
"""The fingerprint of a checkpoint without tensors: what packs start from that hold all of their checkpoint."""


def _dims(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))
