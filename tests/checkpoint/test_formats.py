"""The table of formats: what it says is what folders are searched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltapack.checkpoint import open_checkpoint
from deltapack.checkpoint.formats import FORMATS, WeightFormat, format_of
from deltapack.checkpoint.torchfile import parse_torch_file
from deltapack.errors import CheckpointError
from deltapack.format.paths import is_weight_file

STATE = {"w": torch.arange(6.0)}


def write(path: Path, row: WeightFormat, state: dict[str, torch.Tensor]) -> Path:
    """A file of a format. There are two ways to write one; a format that nothing here can write needs a third."""
    if row.parse is parse_torch_file:
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.whole)
def test_every_format_is_found_in_a_folder_and_as_a_file(row: WeightFormat, tmp_path: Path) -> None:
    for suffix in (*row.suffixes, *(suffix.upper() for suffix in row.suffixes)):
        found = format_of(f"a.b{suffix}")
        assert found is not None and found.parse is row.parse and is_weight_file(f"model{suffix.lower()}")
        with open_checkpoint(write(tmp_path / f"file{suffix}", row, STATE)) as checkpoint:
            assert checkpoint.read("w").tolist() == list(range(6))
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / row.whole, row, STATE)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.weight_paths() == [folder / row.whole] and not checkpoint.notes
    (folder / row.index).write_text(json.dumps({"weight_map": {"w": f"gone{row.suffixes[0]}"}}))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.notes == (f"{row.whole} was read; {row.index} beside it names shards that are not there",)
    (folder / row.whole).rename(folder / f"one{row.suffixes[0]}")
    (folder / row.index).write_text(json.dumps({"weight_map": {"w": f"one{row.suffixes[0]}"}}))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.weight_paths() == [folder / f"one{row.suffixes[0]}"]
    (folder / row.index).unlink()
    if row.any_name:
        with open_checkpoint(folder) as checkpoint:
            assert list(checkpoint.tensors) == ["w"]
    else:
        with pytest.raises(CheckpointError, match="no weights in the folder"):
            open_checkpoint(folder)


def test_the_first_format_wins(tmp_path: Path) -> None:
    for number, row in enumerate(FORMATS):
        write(tmp_path / row.whole, row, {"w": torch.tensor([float(number)])})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.read("w").tolist() == [0]


def test_errors_name_every_format(tmp_path: Path) -> None:
    (tmp_path / "x.odd").touch()
    for path in (tmp_path, tmp_path / "x.odd"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        expected = str(caught.value.expected)
        assert all(word in expected for row in FORMATS for word in (row.names if path == tmp_path else row.suffixes))


def test_rows_that_cannot_be_and_names_that_are_no_format() -> None:
    for suffixes, whole in ((), "model.bin"), ((".BIN",), "model.BIN"), ((".bin",), "model.pt"):
        with pytest.raises(ValueError):
            WeightFormat(suffixes, parse_torch_file, whole)
    assert [format_of(name) for name in ("", "bin", ".bin", "x.bin.gz", "x.safetensors.index.json")] == [None] * 5
