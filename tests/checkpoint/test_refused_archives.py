"""Archives of PyTorch that torch would not write: each is told as what it is, before anything of it is unfolded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import random_tensor, write_folder

from deltapack.checkpoint import open_checkpoint, torchzip
from deltapack.checkpoint.files import open_to_read
from deltapack.checkpoint.torchzip import read_data_pkl, read_records, source_in_record
from deltapack.dtypes import BY_NAME
from deltapack.errors import CheckpointError, DeltapackError, LimitError, NotACheckpointError
from deltapack.limits import DEFAULT_LIMITS
from deltapack.sources.reading import Readable

Record = tuple[str, bytes, int]
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
PICKLE = ("m/data.pkl", b"\x80\x02}q\x00.", STORED)


def archive(path: Path, records: Sequence[Record]) -> None:
    """Write a file with these records: name, content, compression."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data, compression in records:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    path.write_bytes(made.getvalue())


@contextmanager
def opened(path: Path, records: Sequence[Record]) -> Iterator[Readable]:
    archive(path, records)
    with closing(open_to_read(path)) as file:
        yield file


@pytest.mark.parametrize(
    ("records", "error", "words"),
    [
        ([PICKLE, ("m/data/0", b"1234", zipfile.ZIP_BZIP2)], CheckpointError, "compressed in a way that torch does not know"),
        ([PICKLE, ("n/data.pkl", b".", STORED)], NotACheckpointError, "no single data.pkl"),
        ([("m/data/0", b"1234", STORED)], NotACheckpointError, "no single data.pkl"),
        ([PICKLE, ("m/constants.pkl", b".", STORED)], NotACheckpointError, "TorchScript"),
        ([PICKLE, ("m/data/0", bytes(1 << 22), DEFLATED)], LimitError, "64 times"),
    ],
)
def test_it_is_refused(records: list[Record], error: type[DeltapackError], words: str, tmp_path: Path) -> None:
    with opened(tmp_path / "a.bin", records) as file, pytest.raises(error, match=words):
        read_records(file, DEFAULT_LIMITS)


def test_a_pickle_that_is_too_long(tmp_path: Path) -> None:
    small = replace(DEFAULT_LIMITS, header_bytes=500)
    with opened(tmp_path / "a.bin", [("m/data.pkl", bytes(501), STORED)]) as file:
        for read in (read_records, read_data_pkl):
            with pytest.raises(LimitError, match=r"too long: .*found 501"):
                read(file, small)
    many = [PICKLE] + [(f"m/data/{number}", b"", STORED) for number in range(20)]
    with opened(tmp_path / "b.bin", many) as file, pytest.raises(LimitError, match=r"the archive's directory or data\.pkl is too long"):
        read_records(file, small)


def test_what_is_deflated_badly(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    archive(path, [("m/data.pkl", b"abcd" * 100, DEFLATED), ("m/byteorder", b"big", STORED)])
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with closing(open_to_read(path)) as file:
        assert read_records(file, DEFAULT_LIMITS) is None  # of the other byte order: torch has to read it
        with pytest.raises(CheckpointError, match="not a readable zip archive"):
            read_data_pkl(file, DEFAULT_LIMITS)


def test_a_section_has_a_begin(tmp_path: Path) -> None:
    with opened(tmp_path / "a.bin", [PICKLE]) as file:
        section = torchzip._Section(file, 0, file.size, DEFAULT_LIMITS)
        with pytest.raises(ValueError, match="before the begin"):
            section.seek(-1)
        assert section.seek(2) == section.tell() == 2


@pytest.mark.parametrize(("shape", "strides"), [((-1, 2), (2, 1)), ((2, 2), (-2, 1))])
def test_a_view_that_runs_backwards(shape: tuple[int, int], strides: tuple[int, int], tmp_path: Path) -> None:
    with opened(tmp_path / "a.bin", [PICKLE]) as file, pytest.raises(CheckpointError, match=r"negative.*found shape"):
        source_in_record(file, "w", BY_NAME["f32"], (0, 16), 0, shape, strides)


def test_a_disk_that_fails_hides_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may not read is told and left out; a fault of the disk is an error."""
    folder = write_folder(tmp_path / "base", {"w": random_tensor(1, (4, 4))}, {"tokenizer.json": "{}"})
    real = Path.is_file

    def failing(number: int) -> None:
        def is_file(path: Path) -> bool:
            if path.name == "tokenizer.json":
                raise OSError(number, "no")
            return real(path)

        monkeypatch.setattr(Path, "is_file", is_file)

    with open_checkpoint(folder) as checkpoint:
        failing(13)
        kept, left = checkpoint.list_side_files(include_code=False)
        assert [file.name for file in kept] == ["config.json"]
        assert [(row.name, row.reason) for row in left] == [("tokenizer.json", "cannot be read: no")]
        assert checkpoint.side_file("tokenizer.json") is None
        failing(5)
        for look in (lambda: checkpoint.list_side_files(include_code=False), lambda: checkpoint.side_file("tokenizer.json")):
            with pytest.raises(CheckpointError, match="cannot be read: no"):
                look()
