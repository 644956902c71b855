from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import random_tensor, write_file, write_folder
from support.mutants import index_of, with_index

import deltapack
from deltapack.errors import DeltapackError, FormatError
from deltapack.format.digest import fingerprint
from deltapack.format.fileparsing import check_files
from deltapack.format.folders import is_metadata
from deltapack.format.index import FileEntry
from deltapack.format.paths import check_apart, check_side_name
from deltapack.limits import DEFAULT_LIMITS

REFUSED = ["model.bin", "x.PKL", "a/b/c/d/e/f/g.txt", "pytorch_model.bin.index.json", "run/state.pt"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_pack_with_a_file_that_nobody_would_write_does_not_open(name: str, tmp_path: Path) -> None:
    """One rule of names for every reader: what no output gets, nothing shows as fine."""
    base = write_folder(tmp_path / "base", {"w": random_tensor(1, (8,))}, {"notes.txt": "a"})
    write_folder(tmp_path / "tuned", {"w": random_tensor(2, (8,))}, {"notes.txt": "b"})
    pack = tmp_path / "pack.dpk"
    deltapack.compress(base, tmp_path / "tuned", pack, allow_unrelated=True)
    index = index_of(pack.read_bytes())
    next(file for file in index["files"] if file["name"] == "notes.txt")["name"] = name
    index["files"].sort(key=lambda file: file["name"])
    pack.write_bytes(with_index(pack.read_bytes(), index))
    for act in (
        lambda: deltapack.open_pack(pack),
        lambda: deltapack.verify(pack),
        lambda: deltapack.verify(pack, base),
        lambda: deltapack.apply(base, pack, tmp_path / "out"),
        lambda: deltapack.apply(base, pack, tmp_path / "out.safetensors"),
        lambda: deltapack.merge(base, [pack], tmp_path / "out"),
        lambda: deltapack.merge(base, [pack], tmp_path / "out.dpk"),
    ):
        with pytest.raises(FormatError) as caught:
            act()
        assert (caught.value.rule, caught.value.found, caught.value.exit_code) == ("R13", name, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "pack.dpk", "tuned"]


def test_what_compress_packs_opens_and_what_it_leaves_out_it_names(tmp_path: Path) -> None:
    """Writers keep to the table of readers before they write."""
    base = write_folder(tmp_path / "base", {"w": random_tensor(1, (8,))})
    tuned = write_folder(tmp_path / "tuned", {"w": random_tensor(2, (8,))}, {"vocab.txt": "a", "Vocab.txt": "b", "Notes.TXT": "c"})
    (tuned / "a/b/c/d/e").mkdir(parents=True)
    (tuned / "a/b/c/d/e/f.txt").write_text("x")
    (tuned / "state.pkl").write_bytes(b"x")
    report = deltapack.compress(base, tuned, tmp_path / "pack.dpk", allow_unrelated=True)
    told = "\n".join(report.notes)
    with deltapack.open_pack(tmp_path / "pack.dpk") as pack:
        assert [file.name for file in pack.index.files or ()] == ["Notes.TXT", "config.json", "vocab.txt"]
    assert all(name in told for name in ("Vocab.txt", "a/b/c/d/e/", "state.pkl"))
    assert deltapack.verify(tmp_path / "pack.dpk", base).level == "applies"


def test_names_that_some_systems_take_for_one() -> None:
    check_apart(["a.txt", "b.txt", "\u00c4", "\u00e4"], "side files")
    with pytest.raises(FormatError, match="differ in case alone") as caught:
        check_apart(["a.txt", "x", "A.TXT"], "side files")
    assert caught.value.rule == "R13"
    rows = [FileEntry(name, 0, "0" * 64, None) for name in ("A/b", "a")]
    with pytest.raises(FormatError, match="also a folder"):
        check_files(rows, (), DEFAULT_LIMITS)
    with pytest.raises(FormatError, match="also a folder"):
        check_files(rows[1:], ("A",), DEFAULT_LIMITS)


def test_a_tensor_is_not_called_as_the_metadata_are(tmp_path: Path) -> None:
    assert is_metadata("__metadata__", ()) and is_metadata("unet/__metadata__", ["unet"])
    assert not any(
        is_metadata(name, ["unet"]) for name in ("x__metadata__", "unet/w", "vae/__metadata__", "/__metadata__", "unet/x/__metadata__")
    )
    base = write_file(tmp_path / "base.safetensors", {"w": random_tensor(1, (8,))})
    deltapack.compress(
        base, write_file(tmp_path / "tuned.safetensors", {"w": random_tensor(2, (8,))}), tmp_path / "p.dpk", allow_unrelated=True
    )
    data = (tmp_path / "p.dpk").read_bytes()
    index = index_of(data)
    entry = index["tensors"][0]
    entry["base"]["name"], entry["name"] = "w", "__metadata__"
    rows = [("__metadata__", entry["dtype"], entry["shape"], entry["digest"])]
    index["result"]["fingerprint"] = fingerprint(rows)
    (tmp_path / "p.dpk").write_bytes(with_index(data, index))
    with pytest.raises(DeltapackError, match="name of the metadata") as caught:
        deltapack.open_pack(tmp_path / "p.dpk")
    assert caught.value.rule == "R6"


def test_side_names_have_a_way_out() -> None:
    with pytest.raises(FormatError, match=r"deeper than 4 folders: expected at most 5 parts, found a/b/c/d/e/f \(rule R13\)"):
        check_side_name("a/b/c/d/e/f")
