"""Terms laid out for a device: what their rows point at is what the pack stores, and what is wrong is refused on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import device_packs as packs
from support.codecs import ONE_SCALE, codec_of

from deltapack.codecs.chunk import TermChunks, TermCodec, decode_term_chunk, encode_term_chunk, term_layout, tiles_of
from deltapack.codecs.indices import masked_positions
from deltapack.device.ready import COLUMNS, KINDS, ReadyTerm, lay_out
from deltapack.device.segments import ALIGNMENT, Segments
from deltapack.errors import ChecksumError, FormatError
from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS
from deltapack.format.digest import CHUNK, TILE
from deltapack.format.index import BaseRef, BlobRef, Entry, Term
from deltapack.format.reader import PackReader
from deltapack.format.writer import StoredChunk, open_pack_writer
from deltapack.kernels import reference

CASES = [
    (TermCodec("seeded", "int4"), 0.1, "seeded"),
    (TermCodec("gaps", "int4"), 0.1, "gaps"),
    (TermCodec("gaps", "int4"), 0.0005, "wide gaps"),
    (TermCodec("gaps", "int8", 1), 0.4, "gaps"),
    (TermCodec("gaps", "int2", 9), 0.001, "wide gaps"),
    (TermCodec("bitmap", "sign"), 0.3, "bitmap"),
    (TermCodec("all", "f16"), 1, "all"),
    *((codec_of("seeded", values), 0.1, "seeded") for values in VALUE_CODECS if values not in ("int4", "int8", "int2", "sign", "f16")),
    (codec_of("stratified", "ternary"), 0.1, "stratified"),
]


def lay(reader: PackReader, segment_bytes: int = 1 << 20, workers: int = 2) -> tuple[list[ReadyTerm], list[NDArray[np.uint8]]]:
    sent: list[NDArray[np.uint8]] = []
    segments = Segments(lambda nbytes: np.zeros(nbytes, np.uint8), lambda buffer, used: sent.append(buffer[:used]), segment_bytes)
    terms = list(lay_out(reader, reader.index.entries, segments, workers))
    segments.flush()
    return terms, sent


def gaps_of_row(row: dict[str, int], sent: list[NDArray[np.uint8]]) -> list[int]:
    """Positions of a tile, one item at a time."""
    stream, positions, cursor = sent[row["segment"]][row["index"] :], [], 0
    for item in range(row["items"]):
        if row["kind"] == KINDS["bitmap"]:
            if stream[item // 8] >> item % 8 & 1:
                positions.append(item)
            continue
        wide = row["kind"] == KINDS["wide gaps"]
        gap = int(stream[2 * item : 2 * item + 2].view(np.uint16)[0]) if wide else int(stream[item])
        if not wide and gap == 255:
            cursor += 255
            continue
        positions.append(cursor + gap)
        cursor += gap + 1
    return positions


def kept_of(blob: TermChunks, term: Term, chunk: int) -> NDArray[np.uint32]:
    """The positions of a chunk that have a code, trits of 0 among them."""
    if term.index_codec.kept == "random":
        return masked_positions(term.index, term.key, term.keep, chunk, tiles_of(blob, chunk)[1])[0]
    return decode_term_chunk(blob, term, chunk, np.float32(1)).positions


@pytest.mark.parametrize(("codec", "density", "kind"), CASES, ids=lambda case: case.values if isinstance(case, TermCodec) else str(case))
@pytest.mark.parametrize("segment_bytes", [1 << 20, 3000])
def test_rows_point_at_the_streams(codec: TermCodec, density: float, kind: str, segment_bytes: int, tmp_path: Path) -> None:
    numel = CHUNK + TILE + 10
    with PackReader(packs.write_pack(tmp_path / "p.dpk", numel, [codec, codec], density)) as reader:
        terms, sent = lay(reader, segment_bytes)
        assert [term.term for term in terms] == list(reader.index.entries[0].terms)
        for ready in terms:
            blob = reader.chunked_blob(ready.term.blob, term_layout(ready.term, numel), ready.term.nnz, "w")
            decoded = [kept_of(blob, ready.term, chunk) for chunk in range(2)]
            assert ready.table.shape == (18, len(COLUMNS)) and ready.path == reader.path
            before = 0
            for tile, numbers in enumerate(ready.table.tolist()):
                row = dict(zip(COLUMNS, numbers, strict=True))
                positions = decoded[tile // 16]
                within = positions[positions >> 16 == tile % 16] & (TILE - 1)
                assert (row["count"], row["before"], row["kind"]) == (len(within), before, KINDS[kind])
                before += len(within)
                if INDEX_CODECS[codec.index].kept == "stored":
                    assert gaps_of_row(row, sent) == within.tolist()
                assert row["codes"] % ALIGNMENT == 0
            if codec.index == "seeded":
                segment, offset, nbytes = ready.parts["thresholds"]
                table = sent[segment][offset : offset + nbytes].view(np.uint32).astype(np.uint64) + 1
                assert np.array_equal(table, reference.gap_thresholds(ready.term.keep))


def test_order_and_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    with PackReader(packs.write_pack(tmp_path / "p.dpk", 3 * CHUNK, [TermCodec("gaps", "int4"), TermCodec("seeded", "int2")])) as reader:
        one, other = lay(reader, workers=1), lay(reader, workers=4)
    assert [part.tobytes() for part in one[1]] == [part.tobytes() for part in other[1]]
    assert [term.table.tobytes() for term in one[0]] == [term.table.tobytes() for term in other[0]]


def write_raw(path: Path, codec: TermCodec, count: int, length: int, **streams: bytes) -> Path:
    """A pack of one chunk whose raw streams are as given, whatever they say."""
    positions, counts = np.arange(count, dtype=np.uint32), np.array([count], np.int64)
    good, _ = encode_term_chunk(codec, positions, np.full(count, 0.5, np.float32), counts, length, np.float32(1))
    kind, scale = ("", 0.0) if codec.scaling is None else (codec.scaling.kind, codec.scaling.lines.scale)
    term = Term(codec.index, codec.values, 1.0, count, BlobRef(0, 0, ""), shift=codec.shift, scales=kind, scale=scale)
    raw = [streams.get(name, stored) for name, stored in zip(term.streams, good.streams, strict=True)]
    with open_pack_writer(path, force=True) as writer:
        blob = writer.chunked_blob(term_layout(term, length))
        blob.append(StoredChunk(tuple(raw), tuple(map(len, raw)), (count,)))
        term = replace(term, blob=blob.close())
        base = BaseRef("w", packs.F32, (length,), packs.NO_DIGEST)
        entry = Entry("w", "delta", packs.F32, (length,), packs.NO_DIGEST, base, (term,))
        writer.finish(packs.index_of(entry))
    return path


HOSTILE: list[tuple[TermCodec, int, int, dict[str, Any], str]] = [
    (TermCodec("gaps", "int8"), 3, 20, {"index": b"\x00\x00\x12"}, "outside its tile"),
    (TermCodec("gaps", "int8"), 3, 600, {"index": b"\x00\xff\xff\x00\x64"}, "outside its tile"),
    (TermCodec("gaps", "int8"), 3, 600, {"index": b"\x00\x00\x00\xff"}, "unused bits of the gap stream"),
    (TermCodec("gaps", "int8"), 3, 600, {"index": b"\xff\x00\x00"}, "another number"),
    (TermCodec("gaps", "int8", 3), 2, 20, {"index": b"\x3f\x00\x00\x03"}, "impossible size|another number|outside"),
    (TermCodec("bitmap", "int8"), 3, 20, {"index": b"\x07\x00\x10"}, "unused bits of the bitmap"),
    (TermCodec("bitmap", "int8"), 3, 20, {"index": b"\x0f\x00\x00"}, "another number"),
    (TermCodec("all", "int4"), 3, 3, {"codes": b"\x11\x11"}, "unused bits of the codes"),
    (TermCodec("all", "int2"), 3, 3, {"codes": b"\x40"}, "unused bits of the codes"),
    (TermCodec("all", "sign"), 3, 3, {"codes": b"\x08"}, "unused bits of the codes"),
    (TermCodec("all", "int8"), 3, 3, {"scales": b"\x80\x7f"}, "scale is not finite"),
    (TermCodec("all", "int8"), 3, 3, {"codes": b"\x00\x00"}, "impossible size"),
    (TermCodec("all", "f32"), 1, 1, {"codes": b"\x00\x00\x80\x7f"}, "code is not finite"),
    (TermCodec("all", "bf16"), 1, 1, {"codes": b"\x80\xff"}, "code is not finite"),
    (TermCodec("all", "f16"), 1, 1, {"codes": b"\x00\x7c"}, "code is not finite"),
    (TermCodec("all", "ternary", 0, ONE_SCALE), 3, 3, {"codes": b"\xf3"}, "holds no trits"),
    (TermCodec("all", "ternary", 0, ONE_SCALE), 3, 3, {"codes": b"\x1b"}, "behind the last code"),
    (TermCodec("all", "uniform", 0, ONE_SCALE), 3, 3, {"codes": bytes(20)}, "precision|levels"),
]


@pytest.mark.parametrize(("codec", "count", "length", "streams", "message"), HOSTILE)
def test_what_is_wrong_is_refused(codec: TermCodec, count: int, length: int, streams: Any, message: str, tmp_path: Path) -> None:
    with PackReader(write_raw(tmp_path / "p.dpk", codec, count, length, **streams)) as reader:
        with pytest.raises(FormatError, match=message) as caught:
            lay(reader)
        assert (caught.value.path, caught.value.tensor) == (reader.path, "w")
        blob = reader.chunked_blob(reader.index.entries[0].terms[0].blob, term_layout(reader.index.entries[0].terms[0], length), count, "w")
        with pytest.raises(FormatError):
            decode_term_chunk(blob, reader.index.entries[0].terms[0], 0, np.float32(1))


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = packs.write_pack(tmp_path / "p.dpk", 5000, [TermCodec("seeded", "int4")])
    with PackReader(path) as reader:
        end = reader.index.entries[0].terms[0].blob.end
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 1
    path.write_bytes(data)
    with PackReader(path) as reader, pytest.raises(ChecksumError):
        lay(reader)
