"""The first 64 bytes of a pack. Implements spec/02-container.md section 2.1."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from deltapack.errors import ChecksumError, FormatError, LimitError, NotAPackError, UnsupportedError
from deltapack.format.digest import hash64
from deltapack.kinds import HEAD_BYTES, NO_PACK, PACK_MAGIC, kind_of
from deltapack.limits import Limits

__all__ = ["ALIGNMENT", "MAGIC", "PROLOGUE_BYTES", "Prologue"]

MAGIC = PACK_MAGIC
MAJOR, MINOR = 1, 0
PROLOGUE_BYTES = 64
ALIGNMENT = 8
_LAYOUT = struct.Struct("<8sHHIQQQQQ")


@dataclass(frozen=True)
class Prologue:
    """Where the index is; all sizes and offsets in bytes."""

    file_length: int
    index_offset: int
    index_length: int
    index_raw_length: int
    index_hash: int

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        head = _LAYOUT.pack(
            MAGIC,
            MAJOR,
            MINOR,
            0,
            self.file_length,
            self.index_offset,
            self.index_length,
            self.index_raw_length,
            self.index_hash,
        )
        return head + struct.pack("<Q", hash64(head))

    @classmethod
    def decode(cls, data: bytes, file_length: int, path: Path, limits: Limits) -> Prologue:
        """Check rules R1 to R3 on the first bytes of a file of `file_length` bytes.

        Raises:
            FormatError: Not a pack, or cut, or extended; a `NotAPackError` where it is whole and something else.
            ChecksumError: The prologue is damaged.
            UnsupportedError: A newer major version.
            LimitError: The index is larger than `limits.index_bytes`.
        """
        if len(data) < PROLOGUE_BYTES or data[:8] != MAGIC:
            kind = kind_of(data[:HEAD_BYTES], path.name)
            if kind is not None and kind.name != "pack":
                raise NotAPackError(f"this is {kind.text}, not a pack", path=path, rule="R1", hint=kind.as_pack)
            unfinished = len(data) >= PROLOGUE_BYTES and not any(data[:PROLOGUE_BYTES])
            what = "unfinished pack: its writer was interrupted" if unfinished else "not a .dpk pack"
            if not unfinished and data[:4] != MAGIC[:4] and path.suffix.lower() != ".dpk":
                raise NotAPackError(what, path=path, rule="R1", found=f"first bytes {data[:8]!r}", hint=NO_PACK)
            raise FormatError(what, path=path, rule="R1", found=f"first bytes {data[:8]!r}", hint="Fetch the pack again.")
        head, (stored_hash,) = data[: _LAYOUT.size], struct.unpack("<Q", data[_LAYOUT.size : PROLOGUE_BYTES])
        _, major, _minor, flags, length, offset, stored, raw, index_hash = _LAYOUT.unpack(head)
        if hash64(head) != stored_hash:
            raise ChecksumError("the prologue is damaged", path=path, rule="R1", hint="Fetch the pack again.")
        if flags:
            raise FormatError("reserved flags are set", path=path, rule="R1", expected=0, found=flags)
        if major != MAJOR:
            hint = "Update deltapack." if major > MAJOR else None
            raise UnsupportedError("format version", path=path, rule="R2", expected=MAJOR, found=major, hint=hint)
        if length != file_length:
            what = "the pack is cut short" if file_length < length else "the pack has bytes after its end"
            hint = "Fetch the pack again."
            raise FormatError(what, path=path, rule="R2", expected=f"{length} bytes", found=file_length, hint=hint)
        if offset % ALIGNMENT or offset < PROLOGUE_BYTES or stored == 0 or offset + stored != length:
            found = f"offset {offset}, length {stored}"
            raise FormatError("the index is not the end of the file", path=path, rule="R3", found=found)
        if max(raw, stored) > limits.index_bytes:
            limit = f"at most {limits.index_bytes} bytes"
            raise LimitError("the index is too large", path=path, rule="R3", expected=limit, found=max(raw, stored))
        return cls(length, offset, stored, raw, index_hash)
