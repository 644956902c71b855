"""Write a pack in one pass: blobs first, index next, prologue last (spec/02-container.md)."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from deltapack.errors import LimitError, OutputError
from deltapack.format.atomic import atomic_file, check_new_file, temporary_sibling, writing
from deltapack.format.canonical import dump_canonical
from deltapack.format.digest import hash64
from deltapack.format.forms import is_descriptive, like
from deltapack.format.frames import compress_after, compress_frame, pack_stream
from deltapack.format.index import BlobRef, Entry, FileEntry, Index
from deltapack.format.parsing import parse_index
from deltapack.format.placing import check_as_seen, seen_at
from deltapack.format.prologue import ALIGNMENT, MAGIC, PROLOGUE_BYTES, Prologue
from deltapack.format.reader import PackReader
from deltapack.format.sent import check_new_there, sent_file
from deltapack.format.splitting import check_no_parts, check_parts_output, claimed_pack, drop_parts, parts_at, parts_seen, write_parts
from deltapack.format.table import ChunkRecord, Layout
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources.inputs import check_protected
from deltapack.sources.remote_path import RemotePath
from deltapack.sources.sending import remove, staging

__all__ = ["ChunkedBlobWriter", "PackWriter", "StoredChunk", "check_pack_output", "open_pack_writer", "stored_side_file"]

INDEX_LEVEL = 9
_SIDE_FILE_LEVEL, _LARGE_LEVEL, _LARGE = 19, 9, 48 << 20
"""Side files are written once; of those above so many bytes the highest level would make people wait for half a minute and more."""
_REFERENCE, _FAR_SMALLER = 128, 50
"""Bytes that a reference to the base's file has to save, its digest in the index among them; a frame smaller by this factor surely does."""
_COPY_BYTES = 1 << 22


def stored_side_file(name: str, data: bytes, before: bytes | None) -> tuple[bytes, str]:
    """Return what a pack holds of a side file, and the SHA-256 of the form of the base's file that it refers to; empty where to none.

    Args:
        name: Its name.
        data: Its content.
        before: The base's file of this name, if there is one.
    """
    # A text for people stays whole: it need not keep a base from moving on.
    form = like(name, before, data) if before and data and not is_descriptive(name) else b""
    return _stored_after(form, data)


def _stored_after(before: bytes, data: bytes) -> tuple[bytes, str]:
    """Return what a pack holds of some content, and the SHA-256 of what it refers to; empty where to nothing."""
    level = _SIDE_FILE_LEVEL if len(data) <= _LARGE else _LARGE_LEVEL
    if before and data:
        frame = compress_after(before, data)
        if len(frame) < len(data) // _FAR_SMALLER or len(frame) + _REFERENCE < len(pack_stream(data, level)):
            return frame, hashlib.sha256(before).hexdigest()
    return pack_stream(data, level), ""


@dataclass(frozen=True)
class StoredChunk:
    """One chunk ready to be written: stored streams, their raw lengths, kept elements of each tile."""

    streams: tuple[bytes, ...]
    raw_lengths: tuple[int, ...]
    counts: tuple[int, ...] = ()


class PackWriter:
    """Appends blobs to an open file; `finish` makes it a pack."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(bytes(PROLOGUE_BYTES))
        self._end = PROLOGUE_BYTES

    @property
    def end(self) -> int:
        """Offset after the last blob; give it to `rewind` to drop what is written later."""
        return self._end

    def rewind(self, end: int) -> None:
        """Drop every blob written since `end` was read."""
        self._end = end
        self._file.seek(end)
        self._file.truncate()

    def plain_blob(self, data: bytes) -> BlobRef:
        """Append a blob that is hashed whole."""
        offset = self._align()
        self._write(data)
        return BlobRef(offset, len(data), f"{hash64(data):016x}")

    def chunked_blob(self, layout: Layout) -> ChunkedBlobWriter:
        """Begin a blob of chunks; close it before the next blob begins."""
        return ChunkedBlobWriter(self, self._align(), layout)

    def copy_blob(self, reader: PackReader, blob: BlobRef) -> BlobRef:
        """Append a blob of another pack as it is; its chunks were or will be checked by their own hashes."""
        offset = self._align()
        for start in range(blob.offset, blob.end, _COPY_BYTES):
            self._write(reader.read(start, min(_COPY_BYTES, blob.end - start)))
        return replace(blob, offset=offset)

    def side_file(self, name: str, data: bytes, *, carry: bool, before: bytes | None = None) -> FileEntry:
        """Describe a side file and, where the pack has to `carry` it, append its content.

        Args:
            name: Its name.
            data: Its content.
            carry: Whether the base has another file of this name, or none.
            before: The base's, which the content may refer to where that makes it much smaller.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if not carry:
            return FileEntry(name, len(data), sha256)
        stored, base = stored_side_file(name, data, before)
        return FileEntry(name, len(data), sha256, self.plain_blob(stored), base)

    def head(self, name: str, data: bytes, before: bytes | None) -> FileEntry:
        """Describe the head of a weight file and, where that is not the base's, append it.

        Args:
            name: Name of the file.
            data: Its head.
            before: The head of the base's file of this name, if there is one, which this may refer to.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if data == before:
            return FileEntry(name, len(data), sha256)
        stored, base = _stored_after(before or b"", data)
        return FileEntry(name, len(data), sha256, self.plain_blob(stored), base)

    def chunk_digests(self, entry: Entry, base: Sequence[bytes], result: Sequence[bytes]) -> Entry:
        """Append the chunk digests of base and result where the format wants them; return the entry with them."""
        if not entry.needs_digests:
            return entry
        return replace(entry, digests=self.plain_blob(b"".join([*(base if entry.base else []), *result])))

    def finish(self, index: Index) -> int:
        """Write index and prologue and return the size of the file in bytes.

        The index is parsed as a reader would first: what no reader accepts is never written.

        Raises:
            FormatError: A name or shape that the format does not allow.
            LimitError: Too many tensors, or an index that is too large.
        """
        raw = dump_canonical(index.to_json())
        offset = self._align()
        limits = DEFAULT_LIMITS
        if len(raw) > limits.index_bytes:
            raise LimitError("the index is too large", expected=f"at most {limits.index_bytes} bytes", found=len(raw))
        parse_index(raw, offset, limits)
        stored = compress_frame(raw, INDEX_LEVEL)
        self._write(stored)
        prologue = Prologue(self._end, offset, len(stored), len(raw), hash64(stored))
        self._file.seek(0)
        self._file.write(prologue.encode())
        return self._end

    def _align(self) -> int:
        self._write(bytes(-self._end % ALIGNMENT))
        return self._end

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._end += len(data)

    def _patch(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        self._file.write(data)
        self._file.seek(self._end)


class ChunkedBlobWriter:
    """Appends chunks behind a table that is filled in at the end."""

    def __init__(self, writer: PackWriter, offset: int, layout: Layout) -> None:
        self._writer = writer
        self._offset = offset
        self._layout = layout
        self._records: list[ChunkRecord] = []
        writer._write(bytes(layout.table_bytes))

    def append(self, chunk: StoredChunk) -> None:
        """Append the next chunk."""
        payload = b"".join(chunk.streams)
        lengths = tuple(zip(map(len, chunk.streams), chunk.raw_lengths, strict=True))
        self._records.append(ChunkRecord(hash64(payload), lengths, chunk.counts))
        self._writer._write(payload)

    def close(self) -> BlobRef:
        """Fill in the table and return the blob."""
        table = self._layout.encode(self._records)
        self._writer._patch(self._offset, table)
        return BlobRef(self._offset, self._writer.end - self._offset, f"{hash64(table):016x}")


@contextlib.contextmanager
def open_pack_writer(path: Path, *, force: bool, inputs: Iterable[Path] = (), part_bytes: int | None = None) -> Iterator[PackWriter]:
    """Write a pack that appears under `path` only when it is complete; one of more than `part_bytes` in parts beside it.

    Raises:
        OutputError: `path` is one of the `inputs`, exists and `force` is false or it is no pack, or cannot be written.
    """
    check_protected(path, inputs)
    check_pack_output(path, force=force)
    if part_bytes is not None:
        check_parts_output(path, part_bytes)
        with claimed_pack(path), _in_parts(path, part_bytes, force=force) as file:
            yield PackWriter(file)
        return
    with claimed_pack(path):
        old, seen = parts_at(path), parts_seen(path)
        with _whole(path, force=force) as file:
            yield PackWriter(file)
        with writing(path):
            drop_parts(path, old, seen)


@contextlib.contextmanager
def _in_parts(path: Path, part_bytes: int, *, force: bool) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes the parts of a pack, or the pack where one part would hold it."""
    with contextlib.ExitStack() as stack:
        here = not isinstance(path, RemotePath)
        seen, before = parts_seen(path), seen_at(path) if here else None
        folder = path.parent if here else stack.enter_context(staging())
        whole = temporary_sibling(folder / path.name)
        stack.enter_context(_removed(whole))
        with writing(path), open(whole, "x+b") as file:
            yield file
        with PackReader(whole) as reader:
            if here:
                check_as_seen(path, before)
            if reader.file_bytes > part_bytes:
                write_parts(reader, path, part_bytes, force=force, seen=seen, claim=False)
                if not here or before is not None:
                    with writing(path):
                        _remove(path)  # with `force`, what the name stood for before
                return
        old = parts_at(path)
        with _whole(path, force=force) as file, open(whole, "rb") as made:
            shutil.copyfileobj(made, file, _COPY_BYTES)
        with writing(path):
            drop_parts(path, old, seen)


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    """Remove a file in the end, which nobody reads then."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _whole(path: Path, *, force: bool) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a temporary file that becomes `path`, which the caller has claimed."""
    return sent_file(path, force=force) if isinstance(path, RemotePath) else atomic_file(path, force=force, claim=False)


def _remove(path: Path) -> None:
    if isinstance(path, RemotePath):
        remove(path.url)
    else:
        path.unlink(missing_ok=True)


def check_pack_output(path: Path, *, force: bool) -> None:
    """Refuse a pack that cannot be created, or that would take the place of a file that is no pack, not even an unfinished one.

    Raises:
        OutputError: It exists and `force` is false or it is something else, or its folder is missing.
    """
    if isinstance(path, RemotePath):
        check_new_there(path, force=force)
    else:
        check_new_file(path, force=force)
    check_no_parts(path, force=force)
    if not path.is_file():
        return
    with writing(path), path.open("rb") as file:
        head = file.read(len(MAGIC))
    if head != MAGIC and any(head):
        raise OutputError("the output exists and is no pack", path=path, hint="Remove it yourself, or choose another name.")
