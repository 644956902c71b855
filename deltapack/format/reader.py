"""Open a pack and hand out verified bytes. Implements rules R1 to R8 of spec/04-reader-rules.md.

Nothing is allocated before its size was checked against the file, and no payload leaves this module before its
checksum was checked. Reads are at positions, so one reader serves many threads.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from types import TracebackType

from deltapack.checking import as_pack
from deltapack.errors import ChecksumError, DeltapackError, FormatError, NotAPackError, RecipeError
from deltapack.format.digest import chunk_count, hash64, root_digest
from deltapack.format.frames import check_frame_after, decompress_after, decompress_frame, unpack_stream
from deltapack.format.index import BlobRef, Entry, FileEntry, Index
from deltapack.format.parsing import parse_index
from deltapack.format.parts import check_parts, open_pack_file
from deltapack.format.prologue import PROLOGUE_BYTES, Prologue
from deltapack.format.table import ChunkRecord, Layout
from deltapack.kinds import pack_hint
from deltapack.limits import DEFAULT_LIMITS, Limits
from deltapack.sources.local import LocalFile
from deltapack.sources.reading import Faults, Readable

__all__ = ["ChunkedBlob", "PackReader"]


def _unfit(path: Path, what: str) -> NotAPackError:
    told = "this is a folder, not a pack" if what == "not a regular file" and path.is_dir() else what
    hint = "A pack is a .dpk file; where a base is given, too, it comes before the pack." if what == "not a regular file" else None
    return NotAPackError(told, path=path, hint=hint)


_FAULTS = Faults(
    missing=lambda path: NotAPackError("no such file", path=path, hint=pack_hint(path)),
    unfit=_unfit,
    unread=lambda path, what: FormatError(what, path=path),
    ended=lambda path, expected, found: FormatError("the pack is cut short", path=path, rule="R2"),
    sealed=True,
)


class PackReader:
    """An open pack.

    Attributes:
        parts: What the index of its parts says, where it comes in parts.

    Args:
        path: The file; of a pack in parts the index, the first part, or the name of the whole.
        limits: What it may ask of this process.

    Raises:
        FormatError: Rules R1 to R7 are broken, or the file cannot be read.
        NotAPackError: There is no such file, or it is a checkpoint or something else that is no pack.
        ChecksumError: The prologue or the index is damaged.
        UnsupportedError: A newer version or an unknown feature.
        LimitError: The index is over a limit.
        RecipeError: `path` is no path.
    """

    def __init__(self, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = as_pack("the pack", path)
        self._file, self.parts = open_pack_file(self.path, _FAULTS)
        self._closed = False
        try:
            self.index, self.pack_id, self.index_stored_bytes = self._read_index(limits)
        except DeltapackError as error:
            self._file.close()
            error.path = self.path
            raise
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PackReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later reads fail."""
        self._closed = True
        self._file.close()

    @cached_property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self._opened().size

    @cached_property
    def tables(self) -> tuple[bytes, ...]:
        """What chunks of exact tensors share, as it is stored.

        Raises:
            ChecksumError: One is damaged.
        """
        return tuple(map(self.plain_blob, self.index.tables))

    def _opened(self) -> Readable:
        """Return the file.

        Raises:
            RecipeError: It was closed.
        """
        if self._closed:
            hint = "Read its tensors before it is closed: inside of the `with` block that opened it."
            raise RecipeError("the pack is closed", path=self.path, hint=hint)
        return self._file

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes at `offset`.

        Raises:
            FormatError: The file ends before, or cannot be read.
            RecipeError: The pack was closed.
        """
        try:
            return self._opened().read(offset, length)
        except FormatError:
            self._opened()  # closed meanwhile, by another thread: that is no fault of the pack
            raise

    def plain_blob(self, blob: BlobRef) -> bytes:
        """Return the bytes of a plain blob.

        Raises:
            ChecksumError: They are damaged.
        """
        data = self.read(blob.offset, blob.length)
        if f"{hash64(data):016x}" != blob.hash:
            raise ChecksumError("a blob is damaged", path=self.path, rule="R8", hint="Fetch the pack again.")
        return data

    def chunk_digests(self, entry: Entry) -> tuple[list[bytes], list[bytes]]:
        """Return the stored chunk digests of an entry: of its base tensor, and of its result; none where none are stored.

        Raises:
            ChecksumError: They are damaged.
            FormatError: They do not have the root digests of the index (rule R9).
        """
        if entry.digests is None:
            return [], []
        data = self.plain_blob(entry.digests)
        digests = [data[start : start + 16] for start in range(0, len(data), 16)]
        split = chunk_count(entry.base.numel) if entry.base is not None else 0
        of_base, of_result = digests[:split], digests[split:]
        roots = [(entry.digest, root_digest(entry.dtype.name, entry.shape, of_result))]
        if entry.base is not None:
            roots.append((entry.base.digest, root_digest(entry.base.dtype.name, entry.base.shape, of_base)))
        for expected, found in roots:
            if expected != found:
                what = "chunk digests do not have the root digest of the index"
                raise FormatError(what, path=self.path, tensor=entry.name, rule="R9", expected=expected, found=found)
        return of_base, of_result

    def check_side_file(self, entry: FileEntry) -> None:
        """Check a side file, or a head of a weight file, that the pack carries, as far as that can be without the base.

        Raises:
            FormatError: The content is not what the index says.
        """
        if not entry.base:
            self.side_file(entry)
            return
        try:
            check_frame_after(self._stored_file(entry), entry.size)
        except FormatError as error:
            error.path = self.path
            raise

    def _stored_file(self, entry: FileEntry) -> bytes:
        """Return a side file as it is stored."""
        assert entry.blob is not None
        stored = self.plain_blob(entry.blob)
        most = entry.size - 1 if entry.base else entry.size
        if len(stored) > most:
            what = f"the file {entry.name!r} is stored larger than it is"
            raise FormatError(what, path=self.path, rule="R8", expected=f"at most {most}", found=len(stored))
        return stored

    def side_file(self, entry: FileEntry, before: bytes = b"") -> bytes:
        """Return the content of a side file, or the head of a weight file, that the pack carries.

        Args:
            entry: The file.
            before: What it refers to, in the form whose digest is `entry.base`.

        Raises:
            FormatError: The content is not what the index says.
        """
        stored = self._stored_file(entry)
        try:
            data = decompress_after(before, stored, entry.size) if entry.base else unpack_stream(stored, entry.size)
        except FormatError as error:
            error.path = self.path
            raise
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ChecksumError(f"file {entry.name!r} is damaged", path=self.path, rule="R8")
        return data

    def chunked_blob(self, blob: BlobRef, layout: Layout, nnz: int, tensor: str) -> ChunkedBlob:
        """Read and check the table of a chunked blob.

        Raises:
            ChecksumError: The table is damaged.
            FormatError: Rule R8 is broken.
        """
        try:
            size = layout.table_bytes
            if size > blob.length:
                raise FormatError("a blob is smaller than its table", rule="R8", expected=size, found=blob.length)
            table = self.read(blob.offset, size)
            if f"{hash64(table):016x}" != blob.hash:
                raise ChecksumError("the table of a blob is damaged", rule="R8", hint="Fetch the pack again.")
            records = layout.decode(table, blob.length - size, nnz)
        except FormatError as error:
            error.path, error.tensor = self.path, tensor
            raise
        return ChunkedBlob(self, blob.offset + size, layout, records, tensor)

    def _read_index(self, limits: Limits) -> tuple[Index, str, int]:
        size = self._file.size
        prologue = Prologue.decode(self.read(0, min(PROLOGUE_BYTES, size)), size, self.path, limits)
        stored = self.read(prologue.index_offset, prologue.index_length)
        if hash64(stored) != prologue.index_hash:
            raise ChecksumError("the index is damaged", rule="R3", hint="Fetch the pack again.")
        raw = decompress_frame(stored, prologue.index_raw_length)
        index = parse_index(raw, prologue.index_offset, limits)
        self._index_offset = prologue.index_offset
        pack_id = hashlib.sha256(raw).hexdigest()
        if self.parts is not None and self.parts.pack_id != pack_id:
            raise FormatError("the parts are of another pack than their index says", expected=self.parts.pack_id, found=pack_id)
        if isinstance(self._file, LocalFile):  # elsewhere each gap is a request, and nothing reads these bytes: `verify` looks at them
            self.check_padding(index)
        return index, pack_id, len(stored)

    @property
    def whole_path(self) -> Path:
        """The name of the pack, whichever of its parts or their index it was opened by."""
        return self.path if self.parts is None else self.path.with_name(f"{self.parts.stem}.dpk")

    def check_parts(self) -> None:
        """Compare the digests of the parts, where there are some; a `ChecksumError` names the one that is another."""
        check_parts(self._file, self.parts)

    def check_padding(self, index: Index | None = None) -> None:
        """Check what rounding skips between blobs; opening a pack of this machine has done so.

        Raises:
            FormatError: It is not zero (rule R7).
        """
        blobs = (index or self.index).blobs
        starts = [blob.offset for blob in blobs[1:]] + [self._index_offset]
        for blob, start in zip(blobs, starts, strict=False):
            if start > blob.end and any(self.read(blob.end, start - blob.end)):
                raise FormatError("padding between blobs is not zero", path=self.path, rule="R7", found=f"at byte {blob.end}")


class ChunkedBlob:
    """The chunks of one blob, each checked when it is read."""

    def __init__(self, reader: PackReader, start: int, layout: Layout, records: tuple[ChunkRecord, ...], tensor: str) -> None:
        self._reader = reader
        self.layout: Layout = layout
        self.records: tuple[ChunkRecord, ...] = records
        self._tensor = tensor
        self._starts = [start]
        for record in records:
            self._starts.append(self._starts[-1] + record.payload_bytes)

    def streams(self, chunk: int, bounds: tuple[tuple[int, int], ...]) -> list[bytes]:
        """Return the raw streams of a chunk.

        Args:
            chunk: Its number in the blob.
            bounds: Smallest and largest raw length that the codec allows for each stream.

        Raises:
            ChecksumError: The payload is damaged.
            FormatError: A raw length is impossible (R8) or a frame is invalid (R10).
        """
        record = self.records[chunk]
        try:
            for (_, raw), (least, most) in zip(record.streams, bounds, strict=True):
                if not least <= raw <= most:
                    raise FormatError("a stream has an impossible size", rule="R8", expected=f"{least} to {most}", found=raw)
            payload = self._reader.read(self._starts[chunk], record.payload_bytes)
            if hash64(payload) != record.hash:
                raise ChecksumError("a chunk is damaged", rule="R8", found=f"chunk {chunk}", hint="Fetch the pack again.")
            streams, position = [], 0
            for stored, raw in record.streams:
                streams.append(unpack_stream(payload[position : position + stored], raw))
                position += stored
            return streams
        except FormatError as error:
            self.locate(error)
            raise

    def locate(self, error: FormatError) -> None:
        """Name this pack and tensor in an error that was raised without knowing them."""
        error.path, error.tensor = self._reader.path, self._tensor
