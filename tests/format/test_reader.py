"""Writer and reader together, and packs damaged in every way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from support.small_packs import CODECS, NAMES, digest_of, index_of, read_everything, seal, write_small_pack

from deltapack.codecs.stored import encode_stored_chunk, stored_layout
from deltapack.dtypes import BY_NAME
from deltapack.errors import ChecksumError, DeltapackError, FormatError, LimitError, OutputError, RecipeError
from deltapack.format.canonical import dump_canonical
from deltapack.format.frames import compress_frame
from deltapack.format.index import BlobRef, Entry, FileEntry
from deltapack.format.reader import PackReader
from deltapack.format.writer import PackWriter, open_pack_writer
from deltapack.limits import Limits

OPAQUE = BY_NAME["u8"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_pack(tmp_path_factory.mktemp("pack") / "small.dpk")


def test_small_pack_is_readable_and_small(pack: Path) -> None:
    assert pack.stat().st_size < 6000
    with PackReader(pack) as reader:
        assert [entry.name for entry in reader.index.entries] == NAMES + list("bcdef")
        assert reader.file_bytes == pack.stat().st_size
    assert len(read_everything(pack)) == 2 * len(CODECS) + 2 * 2 + 2 + 1


def test_same_bytes_every_time(pack: Path, tmp_path: Path) -> None:
    assert write_small_pack(tmp_path / "again.dpk").read_bytes() == pack.read_bytes()


def test_every_flipped_byte_is_noticed(pack: Path, tmp_path: Path) -> None:
    """Every byte is under a checksum or must be zero."""
    data, path = pack.read_bytes(), tmp_path / "flipped.dpk"
    path.write_bytes(data)
    handle = os.open(path, os.O_RDWR)
    try:
        for at, byte in enumerate(data):
            os.pwrite(handle, bytes([byte ^ 1 << at % 8]), at)
            with pytest.raises(DeltapackError) as caught:
                read_everything(path)
            assert caught.value.path == path
            os.pwrite(handle, bytes([byte]), at)
    finally:
        os.close(handle)
    assert read_everything(path) == read_everything(pack)


def test_every_truncation_is_noticed(pack: Path, tmp_path: Path) -> None:
    data, path = pack.read_bytes(), tmp_path / "cut.dpk"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError) as caught:
            PackReader(path)
        assert caught.value.rule == ("R1" if length < 64 else "R2")


@pytest.mark.parametrize("more", [b"\0", b"x" * 9, bytes(4096)])
def test_appended_bytes_are_noticed(pack: Path, tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "long.dpk"
    path.write_bytes(pack.read_bytes() + more)
    with pytest.raises(FormatError, match="after its end"):
        PackReader(path)


def test_files_that_are_no_packs(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FormatError) as caught:
            PackReader(path)
        assert caught.value.path == path
    with pytest.raises(RecipeError, match="a name in it is too long"):
        PackReader(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a"):
        PackReader(tmp_path / "pipe")


def test_reading_after_close_is_an_error(pack: Path) -> None:
    reader = PackReader(pack)
    reader.close()
    reader.close()
    with pytest.raises(RecipeError):
        reader.read(0, 1)


def test_failed_open_leaves_no_open_file(pack: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.dpk"
    path.write_bytes(pack.read_bytes()[:-1])
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    for _ in range(3):
        with pytest.raises(FormatError):
            PackReader(path)
    assert (os.listdir("/proc/self/fd") if before else []) == before


def test_index_over_the_limit(pack: Path) -> None:
    with pytest.raises(LimitError):
        PackReader(pack, Limits(index_bytes=100))


@pytest.mark.parametrize("raw_length", [1, 10**7, 1 << 26])
def test_index_bomb(tmp_path: Path, raw_length: int) -> None:
    """The frame is honest about its 64 MiB, the prologue is not; or both are, and the content is no index."""
    frame = compress_frame(bytes(1 << 26), 1)
    path = tmp_path / "bomb.dpk"
    path.write_bytes(seal(b"", frame, raw_length))
    with pytest.raises(LimitError if raw_length == 1 << 26 else FormatError) as caught:
        PackReader(path)
    assert caught.value.rule == ("R4" if raw_length == 1 << 26 else "R10")


def test_nested_index(tmp_path: Path) -> None:
    raw = b'{"a":' * 100_000
    path = tmp_path / "deep.dpk"
    path.write_bytes(seal(b"", compress_frame(raw, 1), len(raw)))
    with pytest.raises(FormatError) as caught:
        PackReader(path)
    assert caught.value.rule == "R4"


def test_padding_must_be_zero(tmp_path: Path) -> None:
    entry = Entry("a", "stored", OPAQUE, (1,), digest_of("a"), stored=BlobRef(64, 25, "0" * 16))
    raw = dump_canonical(index_of([entry]).to_json())
    path = tmp_path / "padding.dpk"
    path.write_bytes(seal(bytes(25), compress_frame(raw, 1), len(raw)))
    PackReader(path).close()
    path.write_bytes(seal(bytes(31) + b"\1", compress_frame(raw, 1), len(raw)))
    with pytest.raises(FormatError) as caught:
        PackReader(path)
    assert caught.value.rule == "R7"


def test_rewind_drops_blobs(tmp_path: Path) -> None:
    paths = [tmp_path / "plain.dpk", tmp_path / "rewound.dpk"]
    for path in paths:
        with open_pack_writer(path, force=False) as writer:
            first = writer.plain_blob(b"{}")
            if path is paths[1]:
                end = writer.end
                writer.plain_blob(b"x" * 1000)
                blob = writer.chunked_blob(stored_layout(5))
                blob.append(encode_stored_chunk(np.arange(5, dtype=np.uint8)))
                writer.rewind(end)
            second = writer.plain_blob(b"[]")
            files = [FileEntry(name, 2, "0" * 64, blob) for name, blob in (("a", first), ("b", second))]
            writer.finish(index_of([], tuple(files)))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_copied_blobs_are_the_same(pack: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.dpk"
    with PackReader(pack) as reader:
        with open_pack_writer(path, force=False) as writer:
            blobs = [writer.plain_blob(b"shifts all others")]
            blobs += [writer.copy_blob(reader, blob) for blob in reader.index.blobs]
            files = (FileEntry(f"{i:02}", blob.length, "0" * 64, blob) for i, blob in enumerate(blobs))
            writer.finish(index_of([], tuple(files)))
        with PackReader(path) as copy:
            for old, new in zip(reader.index.blobs, copy.index.blobs[1:], strict=True):
                assert (new.length, new.hash) == (old.length, old.hash)
                assert new.offset > old.offset
                assert copy.read(new.offset, new.length) == reader.read(old.offset, old.length)


def side_file_pack(path: Path, stored: bytes, size: int, sha256: str) -> PackReader:
    with open_pack_writer(path, force=True) as writer:
        writer.finish(index_of([], (FileEntry("a.json", size, sha256, writer.plain_blob(stored)),)))
    return PackReader(path)


def test_side_files(tmp_path: Path) -> None:
    content = b'{"a": 1}\n' * 100
    sha = hashlib.sha256(content).hexdigest()
    path = tmp_path / "files.dpk"
    for stored in (content, compress_frame(content, 1)):
        with side_file_pack(path, stored, len(content), sha) as reader:
            assert reader.side_file((reader.index.files or ())[0]) == content
    bad = [
        (content, len(content), "0" * 64, "R8"),
        (content + b"x", len(content), sha, "R8"),
        (compress_frame(b"a", 1), 1, hashlib.sha256(b"a").hexdigest(), "R8"),
        (content[:-1], len(content), sha, "R10"),
        (compress_frame(content + b"x", 1), len(content), sha, "R10"),
        (compress_frame(content, 1) + b"x", len(content), sha, "R10"),
    ]
    for stored, size, digest, rule in bad:
        with side_file_pack(path, stored, size, digest) as reader, pytest.raises(FormatError) as caught:
            reader.side_file((reader.index.files or ())[0])
        assert (caught.value.rule, caught.value.path) == (rule, path)


def test_damaged_blobs_name_pack_and_tensor(pack: Path, tmp_path: Path) -> None:
    data = bytearray(pack.read_bytes())
    with PackReader(pack) as reader:
        blob = reader.index.entries[1].terms[0].blob
    data[blob.end - 1] ^= 1
    path = tmp_path / "damaged.dpk"
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match="chunk 0") as caught:
        read_everything(path)
    assert (caught.value.path, caught.value.tensor, caught.value.rule) == (path, "a1", "R8")


def test_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.dpk"
    with pytest.raises(KeyboardInterrupt), open_pack_writer(path, force=False) as writer:
        writer.plain_blob(b"x" * 100)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_pack_is_kept(pack: Path) -> None:
    before = pack.read_bytes()
    with pytest.raises(OutputError, match="exists"), open_pack_writer(pack, force=False):
        pass
    assert pack.read_bytes() == before


def test_unfinished_pack_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.dpk"
    with path.open("w+b") as file:
        PackWriter(file).plain_blob(b"x")
    with pytest.raises(FormatError, match="interrupted"):
        PackReader(path)
