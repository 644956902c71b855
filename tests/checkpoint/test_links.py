"""Symbolic links among side files: those that lead out of the folder are named, and packed only where the user says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.adapters import ROWS, base_model, lora, write_adapter
from support.builders import read_folder, small_model, tuned_model, write_folder
from support.commands import Run

import deltapack
from deltapack.checkpoint.links import homes_of, leads_out
from deltapack.errors import RecipeError
from deltapack.packs.inspecting import inspect_pack

SECRET = "private notes of who packs"


@pytest.fixture
def at(tmp_path: Path) -> Path:
    """A base and a fine-tune with links to a file outside, and one that stays inside."""
    base = small_model()
    write_folder(tmp_path / "base", base)
    tuned = write_folder(tmp_path / "tuned", tuned_model(base), {"README.md": "text", "1_Pooling/config.json": "{}"})
    (tmp_path / "secret.txt").write_text(SECRET)
    (tuned / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (tuned / "1_Pooling/notes.md").symlink_to("../../secret.txt")
    (tuned / "inside.md").symlink_to("README.md")
    (tmp_path / "way").symlink_to(tmp_path / "secret.txt")
    (tuned / "over.md").symlink_to("../way")
    return tmp_path


def held(pack: Path) -> dict[str, bool]:
    """The side files of a pack, and whether it has their content."""
    return {file.name: file.stored_bytes is not None for file in inspect_pack(pack).files}


@pytest.fixture
def names(at: Path) -> list[str]:
    return ["1_Pooling/notes.md", "notes.txt", "over.md"]


def test_links_out_of_the_folder_are_named_and_not_packed(at: Path, names: list[str]) -> None:
    report = deltapack.compress(at / "base", at / "tuned", at / "a.dpk")
    (note,) = [note for note in report.notes if "lead out of the folder" in note]
    assert all(name in note for name in names) and "--follow-links" in note
    deltapack.apply(at / "base", at / "a.dpk", at / "out")
    files = read_folder(at / "out")
    assert not set(names) & files.keys() and SECRET.encode() not in b"".join(files.values())
    assert files["inside.md"] == b"text", "a link that stays inside travels"


def test_all_are_named_however_many(at: Path) -> None:
    more = [f"link{number}.txt" for number in range(30)]
    for name in more:
        (at / "tuned" / name).symlink_to(at / "secret.txt")
    (note,) = [note for note in deltapack.preview_compress(at / "base", at / "tuned").notes if "lead out of the folder" in note]
    assert all(name in note for name in more)


def test_they_are_packed_where_the_user_says_so(at: Path, names: list[str]) -> None:
    result = Run()("compress", at / "base", at / "tuned", "-o", at / "a.dpk", "--follow-links")
    assert result.exit_code == 0 and "lead out" not in result.output
    deltapack.apply(at / "base", at / "a.dpk", at / "out")
    files = read_folder(at / "out")
    assert all(files[name] == SECRET.encode() for name in names)
    assert not any((at / "out" / name).is_symlink() for name in names)


def test_leave_out_speaks_before_links(at: Path, names: list[str]) -> None:
    for pattern in ("notes.txt", "**/notes.*"):
        report = deltapack.compress(at / "base", at / "tuned", at / "a.dpk", leave_out=[pattern, "over.md"], force=True)
        assert "notes.txt" not in " ".join(note for note in report.notes if "lead out" in note)
    assert not [note for note in report.notes if "lead out" in note]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_what_the_model_is_loaded_with_never_stays_behind_by_itself(name: str, at: Path) -> None:
    path = at / "tuned" / name
    path.unlink(missing_ok=True)
    (at / "elsewhere.json").write_text('{"a": 1}')
    path.symlink_to(at / "elsewhere.json")
    with pytest.raises(RecipeError, match=r"a link that leads out of the folder: found .*--follow-links.*--leave-out"):
        deltapack.compress(at / "base", at / "tuned", at / "a.dpk")
    assert not (at / "a.dpk").exists()
    deltapack.compress(at / "base", at / "tuned", at / "b.dpk", leave_out=[name])
    deltapack.compress(at / "base", at / "tuned", at / "a.dpk", follow_links=True)
    deltapack.apply(at / "base", at / "a.dpk", at / "out")
    assert (at / "out" / name).read_text() == '{"a": 1}'


def snapshot(at: Path, tuned: Path) -> Path:
    """The fine-tune as the cache of the Hub has it: all files are links to blobs."""
    repository = at / "hub/models--org--name"
    commit = repository / "snapshots" / ("c" * 40)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in tuned.rglob("*") if path.is_file() and not path.is_symlink())):
        link = commit / path.relative_to(tuned)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repository / "blobs" / f"{number:040x}")
        link.symlink_to(Path(*[".."] * (len(link.relative_to(repository).parts) - 1), "blobs", f"{number:040x}"))
    return commit


def test_a_snapshot_in_the_hubs_cache_is_at_home(at: Path) -> None:
    commit = snapshot(at, at / "tuned")
    for folder in (commit, commit / "1_Pooling"):
        assert [leads_out(path, homes_of(folder)) for path in folder.iterdir() if path.is_file()] == [False] * len(
            [path for path in folder.iterdir() if path.is_file()]
        )
    report = deltapack.compress(at / "base", commit, at / "a.dpk")
    assert not [note for note in report.notes if "lead out" in note]
    deltapack.apply(at / "base", at / "a.dpk", at / "out")
    assert {"README.md", "1_Pooling/config.json", "config.json"} <= read_folder(at / "out").keys()


@pytest.mark.parametrize("how", ["blobs are a link", "a blob is a link", "no cache's name", "of another repository"])
def test_what_only_looks_like_a_cache_is_not(how: str, at: Path) -> None:
    """A folder from a stranger may have any form."""
    commit = snapshot(at, at / "tuned")
    repository = commit.parent.parent
    (at / "private").mkdir()
    shutil.copy(at / "secret.txt", at / "private/key")
    target = Path("../../blobs/key")
    if how == "blobs are a link":
        for path in (repository / "blobs").iterdir():
            shutil.copy(path, at / "private" / path.name)
        shutil.rmtree(repository / "blobs")
        (repository / "blobs").symlink_to(at / "private")
    elif how == "a blob is a link":
        (repository / "blobs/key").symlink_to(at / "private/key")
    elif how == "no cache's name":
        repository = repository.rename(repository.with_name("org--name"))
        shutil.copy(at / "secret.txt", repository / "blobs/key")
    else:
        other = repository.with_name("models--org--other") / "blobs"
        other.mkdir(parents=True)
        shutil.copy(at / "secret.txt", other / "key")
        target = Path("../../../models--org--other/blobs/key")
    commit = repository / "snapshots" / commit.name
    (commit / "notes.txt").symlink_to(target)
    assert (commit / "notes.txt").read_text() == SECRET
    assert leads_out(commit / "notes.txt", homes_of(commit))


def test_weights_that_are_links_are_read_as_ever(at: Path) -> None:
    """Many share their shards so."""
    (at / "tuned/model.safetensors").rename(at / "shard.safetensors")
    (at / "tuned/model.safetensors").symlink_to(at / "shard.safetensors")
    assert deltapack.compress(at / "base", at / "tuned", at / "a.dpk").notes


def test_a_folder_that_is_a_link_is_no_link_out(at: Path, names: list[str]) -> None:
    for name in names:
        (at / "tuned" / name).unlink()
    (at / "shown").symlink_to(at / "tuned")
    report = deltapack.compress(at / "base", at / "shown", at / "a.dpk")
    assert not [note for note in report.notes if "lead out" in note]


def test_links_of_the_base_are_followed_as_no_pack_holds_what_is_the_bases(at: Path) -> None:
    (at / "base/notes.txt").symlink_to(at / "secret.txt")
    (at / "tuned/notes.txt").unlink()
    (at / "tuned/notes.txt").write_text(SECRET)
    deltapack.compress(at / "base", at / "tuned", at / "a.dpk")
    assert held(at / "a.dpk")["notes.txt"] is False
    deltapack.apply(at / "base", at / "a.dpk", at / "out")
    assert (at / "out/notes.txt").read_text() == SECRET


def test_tokenizers_of_adapters(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", base_model(), {"tokenizer.json": "{}"})
    adapter = write_adapter(tmp_path / "adapter", lora("layer.square", ROWS, ROWS))
    (tmp_path / "secret.json").write_text(json.dumps(SECRET))
    (adapter / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(RecipeError, match="leads out of the folder"):
        deltapack.compress(base, adapter, tmp_path / "a.dpk")
    deltapack.compress(base, adapter, tmp_path / "a.dpk", follow_links=True)
    deltapack.apply(base, tmp_path / "a.dpk", tmp_path / "out")
    assert json.loads((tmp_path / "out/tokenizer.json").read_text()) == SECRET
