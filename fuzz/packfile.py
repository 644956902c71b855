"""Packs taken apart and put together: what is changed in between gets places, lengths and checksums that fit."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash
import zstandard

from fuzz.spec import reference_decoder

__all__ = ["Blob", "Chunk", "Document", "put_together", "refs_of", "settle_totals", "take_apart"]

Json = dict[str, Any]


@dataclass
class Chunk:
    """A chunk of a blob.

    Attributes:
        streams: Of each stream the bytes as stored, and the raw length that the table says.
        counts: Kept elements of each tile.
    """

    streams: list[tuple[bytes, int]]
    counts: list[int]


@dataclass
class Blob:
    """A blob.

    Attributes:
        data: Its bytes, where it is plain.
        chunks: Its chunks, where it has some.
        spoilt: Added to its hash: 0, so that it fits.
        shift: Added to its place and length in the index.
    """

    data: bytes = b""
    chunks: list[Chunk] | None = None
    spoilt: int = 0
    shift: tuple[int, int] = (0, 0)

    def table(self) -> bytes:
        """The table of a blob of chunks, with hashes of the payloads as they are."""
        rows = []
        for chunk in self.chunks or []:
            lengths = [word for stored, raw in chunk.streams for word in (len(stored), raw)]
            payload = xxhash.xxh3_64_intdigest(b"".join(stored for stored, _ in chunk.streams))
            words = [word & 0xFFFFFFFF for word in (*lengths, *chunk.counts)]
            rows.append(struct.pack(f"<Q{len(words)}I", payload, *words))
        return b"".join(rows)

    def stored(self) -> tuple[bytes, int]:
        """Its bytes, and the hash that the index has of it."""
        if self.chunks is None:
            return self.data, xxhash.xxh3_64_intdigest(self.data) ^ self.spoilt
        table = self.table()
        payloads = b"".join(stored for chunk in self.chunks for stored, _ in chunk.streams)
        return table + payloads, xxhash.xxh3_64_intdigest(table) ^ self.spoilt


@dataclass
class Document:
    """A pack whose index holds a `Blob` wherever it refers to one.

    Attributes:
        index: The index, of which any part may be replaced.
        minor: Minor version.
        fields: Fields of the prologue that are not what follows from the rest, by name.
        text: The index as it is spelt, in place of what `index` comes to.
        frame: The frame of the index, in place of that of its text.
    """

    index: Any
    minor: int = 0
    fields: dict[str, int] = field(default_factory=dict)
    text: bytes | None = None
    frame: bytes | None = None


def refs_of(index: Any) -> Iterator[tuple[Any, Any, str]]:
    """Where an index holds blobs, in the order in which they stand in the file: what holds it, the key, and what it is for."""
    top = index if isinstance(index, dict) else {}
    for entry in (entry for entry in _items(top, "tensors") if isinstance(entry, dict)):
        for term in (term for term in _items(entry, "terms") if isinstance(term, dict)):
            yield term, "blob", "plain" if term.get("values") == "factors" else "term"
            yield term, "lines", "plain"
        yield entry, "stored", "stored"
        for step in (step for step in _items(entry, "exact") if isinstance(step, dict)):
            yield step, "blob", "exact"
        yield entry, "digests", "plain"
    for key in ("files", "containers"):
        for row in (row for row in _items(top, key) if isinstance(row, dict)):
            yield row, "blob", "plain"
    tables = top.get("tables")
    for number in range(len(tables)) if isinstance(tables, list) else ():
        yield tables, number, "plain"


def _items(holder: Json, key: str) -> list[Any]:
    found = holder.get(key)
    return found if isinstance(found, list) else []


def take_apart(data: bytes) -> Document | None:
    """Return a pack taken apart; none where this is no pack whose index can be read.

    Blobs of which the tables make no sense become plain ones.
    """
    spec = reference_decoder()
    try:
        frame, raw_length = spec.read_prologue(data)
        index = json.loads(spec.unzstd(frame, raw_length))
    except (spec.Invalid, ValueError, RecursionError):
        return None
    minor = struct.unpack_from("<H", data, 10)[0]
    entries = {id(term): entry for entry in _items(index, "tensors") if isinstance(entry, dict) for term in _steps(entry)}
    for holder, key, use in list(refs_of(index)):
        ref = holder[key] if isinstance(holder, list) else holder.get(key)
        if not (isinstance(ref, list) and len(ref) == 3 and all(type(word) is int and word >= 0 for word in ref[:2])):
            continue
        entry = holder if use == "stored" else entries.get(id(holder), {})
        content = data[ref[0] : ref[0] + ref[1]]
        holder[key] = _blob(content, use, holder, entry)
    return Document(index, minor)


def _steps(entry: Json) -> list[Any]:
    return [step for key in ("terms", "exact") for step in _items(entry, key) if isinstance(step, dict)]


def _blob(content: bytes, use: str, holder: Json, entry: Json) -> Blob:
    if use == "plain":
        return Blob(content)
    spec = reference_decoder()
    try:
        streams, count = 1, spec.numel(entry["dtype"], entry["shape"])
        if use == "term":
            streams += (holder["index"] in ("gaps", "bitmap")) + (holder["values"] in spec.GROUPED and "scales" not in holder)
            count = spec.common_numel(entry)
        elif use == "stored":
            count -= spec.common_numel(entry)
        return Blob(chunks=_chunks(content, count, streams, use == "term"))
    except Exception:  # whatever the decoder makes of an index that nobody checked
        return Blob(content)


def _chunks(content: bytes, count: int, streams: int, has_counts: bool) -> list[Chunk]:
    spec = reference_decoder()
    if count > 1 << 24:
        raise ValueError("more chunks than are worth it")
    rows, at = [], 0
    for start, stop in spec.spans(count, spec.CHUNK):
        tiles = len(spec.spans(stop - start, spec.TILE)) if has_counts else 0
        _, *words = struct.unpack_from(f"<Q{2 * streams + tiles}I", content, at)
        at += 8 + 4 * len(words)
        rows.append((words[: 2 * streams], words[2 * streams :]))
    chunks = []
    for lengths, counts in rows:
        parts = []
        for stored, raw in zip(lengths[::2], lengths[1::2], strict=True):
            parts.append((content[at : at + stored], raw))
            at += stored
        chunks.append(Chunk(parts, counts))
    if at != len(content):
        raise ValueError("bytes are left")
    return chunks


def put_together(document: Document) -> bytes:
    """Return the bytes of a pack, with checksums that fit."""
    holder = {"index": document.index}
    places, region = {}, bytearray()
    for owner, key, _ in refs_of(document.index):
        blob = owner[key] if isinstance(owner, list) else owner.get(key)
        if isinstance(blob, Blob) and id(blob) not in places:
            content, hash_ = blob.stored()
            region.extend(bytes(-len(region) % 8))
            places[id(blob)] = [64 + len(region) + blob.shift[0], len(content) + blob.shift[1], f"{hash_ & (1 << 64) - 1:016x}"]
            region.extend(content)
    region.extend(bytes(-len(region) % 8))
    text = document.text
    if text is None:
        text = json.dumps(_plain(holder["index"], places), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
    frame = zstandard.ZstdCompressor(level=3).compress(text) if document.frame is None else document.frame
    return _prologue(document, frame, len(text), 64 + len(region)) + bytes(region) + frame


def _plain(value: Any, places: dict[int, list[Any]]) -> Any:
    """The index with references; a blob where no reference is expected becomes one to nothing."""
    if isinstance(value, Blob):
        return list(places.get(id(value), [64, 0, "0" * 16]))
    if isinstance(value, dict):
        return {key: _plain(item, places) for key, item in value.items()}
    return [_plain(item, places) for item in value] if isinstance(value, list) else value


def _prologue(document: Document, frame: bytes, raw_length: int, offset: int) -> bytes:
    values = {"major": 1, "minor": document.minor, "flags": 0, "file_length": offset + len(frame), "index_offset": offset}
    values |= {"index_length": len(frame), "index_raw_length": raw_length, "index_hash": xxhash.xxh3_64_intdigest(frame)}
    values |= document.fields
    masks = (0xFFFF, 0xFFFF, 0xFFFFFFFF, *(((1 << 64) - 1,) * 5))
    numbers = [value & mask for value, mask in zip(values.values(), masks, strict=True)]
    head = struct.pack("<8sHHIQQQQQ", b"\x89DPK\r\n\x1a\n", *numbers)
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))


def settle_totals(index: Any) -> None:
    """Make what follows from the entries follow from them: `nnz`, the order, `required` as far as terms need it, `result`.

    What makes no sense is left as it is.
    """
    spec = reference_decoder()
    if not (isinstance(index, dict) and isinstance(index.get("tensors"), list) and all(isinstance(e, dict) for e in index["tensors"])):
        return
    entries = index["tensors"]
    try:
        for entry in entries:
            for term in _items(entry, "terms"):
                if isinstance(term, dict) and isinstance(term.get("blob"), Blob) and term["blob"].chunks is not None:
                    term["nnz"] = sum(sum(chunk.counts) for chunk in term["blob"].chunks)
        entries.sort(key=lambda entry: entry["name"].encode("utf-8", "surrogatepass"))
        needed = set().union(*(spec.features_of(entry) for entry in entries)) | (
            {"exact"} if any(e["kind"] == "exact" for e in entries) else set()
        )
        index["required"] = sorted({*index["required"], *needed})
        if "exact" in index["required"]:
            index.setdefault("tables", [])
        rows = [(e["name"], e["dtype"], e["shape"], e["digest"]) for e in entries if "dtype" in e]
        size = sum(spec.numel(dtype, shape) * spec.itemsize(dtype) for _, dtype, shape, _ in rows)
        index["result"] = {"tensors": len(rows), "bytes": size, "fingerprint": spec.fingerprint(rows)}
    except (spec.Invalid, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return  # what makes no sense stays as it is
