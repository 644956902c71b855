"""Invalid vectors of `stored` and `digests` blobs, and of unused bits, for make_vectors.py only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import xxhash
import zstandard
from vectors.assemble import Blob, Json, Pack, Root, Term, stream, zstd
from vectors.faults import CHECKSUM, FORMAT, Case
from vectors.scalar import CHUNK
from vectors.valid import SMALL, floats, tensor, term


def blob_cases() -> Iterator[Case]:
    """R8 and R9."""
    yield from stored_cases()
    yield from digests_cases()
    yield from unused_bits()


def _stored(edit: Callable[[Blob], None] | None = None, spoil: Callable[[Json], None] | None = None, size: int = 3) -> bytes:
    """A pack with bytes of 1 held whole; its base is that of v1-ok-index-empty."""
    pack = Pack().stored("w", tensor("u8", (size,), 1), spoil)
    if edit:
        edit(pack.entries[0]["stored"])
    return pack.build()


def stored_cases() -> Iterator[Case]:
    """R8 on elements held whole. The blob of three: 8 bytes of hash, two lengths, 3 bytes."""
    base = "index-empty"

    def flip(blob: Blob) -> None:
        blob.flip = 1

    def resized(by: int) -> Callable[[Blob], None]:
        def edit(blob: Blob) -> None:
            blob.data = blob.data[:by] if by < 0 else blob.data + bytes(by)

        return edit

    def short(blob: Blob) -> None:
        blob.data, blob.hashed = blob.data[:15], None

    yield "R8", "stored-table-hash", CHECKSUM, base, _stored(flip)
    yield "R8", "stored-payload-hash", CHECKSUM, base, _stored(spoil=lambda chunk: chunk.update(flip=1))
    second = iter((0, 1))
    yield "R8", "stored-payload-hash-2", CHECKSUM, base, _stored(None, lambda chunk: chunk.update(flip=next(second)), CHUNK + 1)
    yield "R8", "stored-under-table", FORMAT, base, _stored(short)
    yield "R8", "stored-payload-past-blob", FORMAT, base, _stored(resized(-1))
    yield "R8", "stored-payload-then-more", FORMAT, base, _stored(resized(1))
    frame = zstd(bytes([1] * 3))
    yield "R8", "stored-stored-over-raw", FORMAT, base, _stored(spoil=lambda chunk: chunk.update(streams=[(frame, 3)]))
    for what, size in (("short", 2), ("long", 4)):
        raw = bytes([1] * size)
        pack = Pack().stored("w", tensor("u8", (3,), 1), lambda chunk, raw=raw: chunk.update(streams=[(raw, len(raw))]))  # type: ignore[misc]
        pack.entries[0]["digest"] = Root([xxhash.xxh3_128_digest(raw)])
        yield "R8", f"stored-raw-{what}", FORMAT, base, pack.build()


def digests_cases() -> Iterator[Case]:
    """R8 and R9 on chunk digests."""

    def shrunk() -> Pack:
        """The pack of v1-ok-chunks-shrunk, whose base has two chunks and whose result has one."""
        near = Term("all", "sign", [0, 1, 2], [1, -1, 1], [SMALL])
        return Pack().patched("w", tensor("bf16", (CHUNK + 1,), 0x3DCD), [near], shape=(3,))

    pack = shrunk()
    pack.entries[0]["digests"].flip = 1
    yield "R8", "digests-hash", CHECKSUM, "chunks-shrunk", pack.build()
    for what, at in (("base", 0), ("base-last", 16), ("result", 32)):
        pack = shrunk()
        data = pack.entries[0]["digests"].data
        pack.entries[0]["digests"] = Blob(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        yield "R9", f"digests-root-{what}", FORMAT, "chunks-shrunk", pack.build()
    pack = Pack().stored("w", tensor("u8", (CHUNK + 1,), 0))
    pack.entries[0]["digests"] = Blob(bytes(32))
    yield "R9", "digests-root-stored", FORMAT, "index-empty", pack.build()


def unused_bits() -> Iterator[Case]:
    """R9: bits of the last byte of `codes` that no code uses. The packs are those of v1-ok-values-*."""

    def spoil(chunk: Json) -> None:
        stored, raw = chunk["streams"][1]
        plain = stored if len(stored) == raw else zstandard.decompress(stored)
        chunk["streams"][1] = stream(plain[:-1] + bytes([plain[-1] | bit]))

    for codec, bits in (("int4", (0x10, 0x80)), ("int3", (0x10,)), ("int2", (0x04, 0x80)), ("sign", (0x20,))):
        for bit in bits:
            t = term("bitmap", codec, list(range(0, 522, 2)))
            t.spoil = spoil
            pack = Pack().patched("w", floats("bf16", (522,)), [t])
            yield "R9", f"{codec}-unused-bit-{bit:02x}", FORMAT, f"values-{codec}", pack.build()
