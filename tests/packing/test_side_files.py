"""Which side files travel in a pack, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import random_tensor, read_folder, tuned_model, write_folder
from support.commands import Run

import deltapack
from deltapack.errors import LimitError, RecipeError
from deltapack.format.reader import PackReader

MODEL = {"w": random_tensor(1, (64, 64))}


def folders(where: Path, base: dict[str, str], tuned: dict[str, str]) -> tuple[Path, Path]:
    return write_folder(where / "base", MODEL, base), write_folder(where / "tuned", tuned_model(MODEL), tuned)


def test_tokenizers_of_vendors_and_large_ones_travel(tmp_path: Path) -> None:
    large = "{" + " " * (65 << 20) + "}"
    base, tuned = folders(tmp_path, {}, {"tokenizer.model.v3": "\n\3abc", "tekken.json": "[]", "tokenizer.json": large})
    report = deltapack.compress(base, tuned, tmp_path / "pack.dpk")
    assert not [note for note in report.notes if "left out" in note]
    deltapack.apply(base, tmp_path / "pack.dpk", tmp_path / "out")
    restored, wanted = read_folder(tmp_path / "out"), read_folder(tuned)
    assert restored.keys() == wanted.keys()
    assert all(restored[name] == wanted[name] for name in wanted if not name.endswith(".safetensors"))


def test_a_file_above_the_limit_is_an_error_that_names_the_options(tmp_path: Path) -> None:
    base, tuned = folders(tmp_path, {}, {"tokenizer.json": "1" * 2001, "notes.txt": "x"})
    pack = tmp_path / "pack.dpk"
    with pytest.raises(LimitError) as caught:
        deltapack.compress(base, tuned, pack, max_side_file="2KB")
    assert caught.value.exit_code == 6 and not pack.exists()
    for word in ("tokenizer.json", "2,000", "2,001", "--max-side-file", "--leave-out"):
        assert word in str(caught.value)
    found = Run()("compress", base, tuned, "-o", pack, "--max-side-file", "2KB")
    assert found.exit_code == 6 and "tokenizer.json" in found.stderr
    deltapack.compress(base, tuned, pack, max_side_file=2001)
    report = deltapack.compress(base, tuned, pack, max_side_file="2KB", leave_out=["tokenizer.*"], force=True)
    assert "left out tokenizer.json: as asked for" in report.notes
    with PackReader(pack) as reader:
        assert [file.name for file in reader.index.files or ()] == ["config.json", "notes.txt"]


def test_settings_of_side_files_that_do_nothing_are_refused(tmp_path: Path) -> None:
    base, tuned = folders(tmp_path, {}, {})
    for options in ({"leave_out": ["*.model"]}, {"max_side_file": "much"}, {"max_side_file": -1}):
        with pytest.raises(RecipeError):
            deltapack.compress(base, tuned, tmp_path / "pack.dpk", **options)
    with pytest.raises(RecipeError, match="bare file"):
        deltapack.compress(base, tuned / "model.safetensors", tmp_path / "pack.dpk", leave_out=["*.json"])
