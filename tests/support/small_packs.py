"""A pack of a few kilobytes with every kind of entry and every codec, and a way to read all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from deltapack.codecs.chunk import TermCodec, decode_term_chunk, encode_term_chunk, term_layout
from deltapack.codecs.indices import masked_positions
from deltapack.codecs.stored import decode_stored_chunk, encode_stored_chunk, stored_layout
from deltapack.dtypes import BY_NAME
from deltapack.format.codecs import INDEX_CODECS
from deltapack.format.digest import fingerprint, hash64
from deltapack.format.index import BaseRef, BlobRef, Entry, FileEntry, Index, Term
from deltapack.format.prologue import Prologue
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter, StoredChunk, open_pack_writer
from support.codecs import completed

KEEP, KEY = 1 << 30, 0x0123456789ABCDEF
CODECS = completed(
    (
        TermCodec("seeded", "int4"),
        TermCodec("gaps", "bf16", 3),
        TermCodec("gaps", "int3"),
        TermCodec("gaps", "f16", 15),
        TermCodec("bitmap", "sign"),
        TermCodec("all", "f32"),
        TermCodec("bitmap", "int2"),
        TermCodec("gaps", "int8", 1),
    )
)
NAMES = [f"a{number:x}" for number in range(len(CODECS))]
"""In their order in a pack."""


def digest_of(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def term_of(codec: TermCodec, nnz: int, blob: BlobRef, factor: float = 2.0) -> Term:
    drawn = INDEX_CODECS[codec.index].kept == "random"
    kind, scale = ("", 0.0) if codec.scaling is None else (codec.scaling.kind, codec.scaling.lines.scale)
    return Term(codec.index, codec.values, factor, nnz, blob, KEEP * drawn, KEY * drawn, codec.shift, kind, scale)


def write_term(writer: PackWriter, codec: TermCodec, common: int, seed: int) -> Term:
    """Write random differences at random positions."""
    rng = np.random.default_rng(seed)
    lengths = np.array([common], np.int64)
    if INDEX_CODECS[codec.index].kept == "random":
        positions, counts = masked_positions(codec.index, KEY, KEEP, 0, lengths)
    else:
        kept = np.ones(common, np.bool_) if codec.index == "all" else rng.random(common) < 0.3
        positions, counts = np.flatnonzero(kept).astype(np.uint32), np.array([kept.sum()], np.int64)
    differences = rng.normal(0, 0.01, len(positions)).astype(np.float32)
    chunk, _ = encode_term_chunk(codec, positions, differences, counts, common, np.float32(2))
    return write_chunk(writer, codec, common, chunk)


def write_chunk(writer: PackWriter, codec: TermCodec, common: int, chunk: StoredChunk) -> Term:
    term = term_of(codec, sum(chunk.counts), BlobRef(0, 0, ""))
    blob = writer.chunked_blob(term_layout(term, common))
    blob.append(chunk)
    return term_of(codec, term.nnz, blob.close())


def index_of(entries: list[Entry], files: tuple[FileEntry, ...] | None = None) -> Index:
    """An index whose totals fit its entries."""
    held, bases = [entry for entry in entries if entry.in_result], [entry.base for entry in entries if entry.base is not None]
    return Index(
        base_fingerprint=fingerprint((b.name, b.dtype.name, b.shape, b.digest) for b in bases),
        base_tensors=len(bases),
        result_fingerprint=fingerprint((e.name, e.dtype.name, e.shape, e.digest) for e in held),
        result_tensors=len(held),
        result_bytes=sum(entry.nbytes for entry in held),
        recipe={"method": "dare"},
        entries=tuple(sorted(entries, key=lambda entry: entry.name.encode())),
        files=files,
        created_by="test",
        required=tuple(sorted({feature for entry in entries for term in entry.terms for feature in term.features})),
    )


def write_small_pack(path: Path) -> Path:
    """Write a pack with all kinds and codecs."""
    f32, i16 = BY_NAME["f32"], BY_NAME["i16"]
    with open_pack_writer(path, force=False) as writer:
        entries = []
        for number, codec in enumerate(CODECS):
            name = NAMES[number]
            base = BaseRef(name, f32, (5, 9), digest_of("base" + name))
            terms = (write_term(writer, codec, 45, number),)
            entries.append(Entry(name, "delta", BY_NAME["bf16"], (5, 9), digest_of(name), base=base, terms=terms))
        base = BaseRef("b", f32, (2, 9), digest_of("base b"))
        both = (write_term(writer, CODECS[0], 18, 8), write_term(writer, CODECS[2], 18, 9))
        rows = writer.chunked_blob(stored_layout(9))
        rows.append(encode_stored_chunk(np.arange(9, dtype=np.float32)))
        entries.append(Entry("b", "grown", f32, (3, 9), digest_of("b"), base=base, terms=both, stored=rows.close()))
        whole = writer.chunked_blob(stored_layout(40))
        whole.append(encode_stored_chunk(np.zeros(40, np.int16)))
        entries.append(Entry("c", "stored", i16, (40,), digest_of("c"), stored=whole.close()))
        entries.append(Entry("d", "unchanged", i16, (3,), digest_of("d"), base=BaseRef("D", i16, (3,), digest_of("d"))))
        entries.append(Entry("e", "removed", base=BaseRef("e", i16, (3,), digest_of("e"))))
        entries.append(Entry("f", "alias", of="a0"))
        content = b"{}\n"
        sha = hashlib.sha256(content).hexdigest()
        files = (FileEntry("config.json", 3, sha, writer.plain_blob(content)), FileEntry("tokenizer.json", 9, sha))
        writer.finish(index_of(entries, files))
    return path


def read_everything(path: Path) -> list[bytes]:
    """Decode every stream and file of a pack."""
    out: list[bytes] = []
    with PackReader(path) as reader:
        for entry in reader.index.entries:
            for term in entry.terms:
                blob = reader.chunked_blob(term.blob, term_layout(term, entry.common), term.nnz, entry.name)
                for chunk in range(blob.layout.chunks):
                    out += [part.tobytes() for part in decode_term_chunk(blob, term, chunk, np.float32(term.factor))]
            if entry.stored is not None:
                layout = stored_layout(entry.numel - entry.common)
                blob = reader.chunked_blob(entry.stored, layout, 0, entry.name)
                out += [decode_stored_chunk(blob, entry.dtype, chunk).tobytes() for chunk in range(layout.chunks)]
        out += [reader.side_file(file) for file in reader.index.files or () if file.blob is not None]
    return out


def seal(blobs: bytes, stored_index: bytes, raw_length: int) -> bytes:
    """The bytes of a pack whose checksums of prologue and index are right, whatever the index says."""
    blobs += bytes(-len(blobs) % 8)
    offset = 64 + len(blobs)
    prologue = Prologue(offset + len(stored_index), offset, len(stored_index), raw_length, hash64(stored_index))
    return prologue.encode() + blobs + stored_index
