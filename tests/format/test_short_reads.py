"""A pack is read whole although each read of the system gives less than it was asked for."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from support.small_packs import read_everything, write_small_pack

from deltapack.errors import FormatError
from deltapack.format import writer
from deltapack.format.reader import PackReader


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_small_pack(tmp_path / "a.dpk")


@pytest.mark.parametrize("most", [1, 7, 63, 64, 4096])
def test_everything_is_the_same(most: int, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, pread, asked = read_everything(pack), os.pread, []

    def short(handle: int, count: int, offset: int) -> bytes:
        asked.append(count)
        return pread(handle, min(count, most), offset)

    monkeypatch.setattr(os, "pread", short)
    assert read_everything(pack) == expected
    with PackReader(pack) as reader:
        data = pack.read_bytes()
        for offset in (0, 1, 64, len(data) // 2):
            for length in (0, 1, 65, len(data) - offset):
                assert reader.read(offset, length) == data[offset : offset + length]
            with pytest.raises(FormatError, match="cut short"):
                reader.read(offset, len(data) - offset + 1)
    assert max(asked) > most or most == 4096


def test_copied_blobs_are_the_same(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As merged packs have them; in several pieces, none of which comes at once."""
    pread, file = os.pread, io.BytesIO()
    monkeypatch.setattr(os, "pread", lambda handle, count, offset: pread(handle, min(count, 5), offset))
    monkeypatch.setattr(writer, "_COPY_BYTES", 16)
    with PackReader(pack) as reader:
        out = writer.PackWriter(file)
        blobs = [(out.copy_blob(reader, blob), blob) for blob in reader.index.blobs]
    data = pack.read_bytes()
    assert len(blobs) > 10 and max(blob.length for _, blob in blobs) > 32
    for copied, blob in blobs:
        assert (copied.length, copied.hash, copied.offset % 8) == (blob.length, blob.hash, 0)
        assert file.getvalue()[copied.offset : copied.end] == data[blob.offset : blob.end]
