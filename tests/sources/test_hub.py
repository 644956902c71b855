"""Bases by their names: folders, and repositories through the cache of a Hub that is played here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltapack.errors import BackendError, NotACheckpointError, RecipeError
from deltapack.sources.hub import find_base, split_revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Remembers what it was asked, and has these files at `COMMIT`."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self.folder, self.files, self.cached = folder / COMMIT, files, False

    def snapshot_download(self, repo: str, *, revision: str | None, local_files_only: bool = False, **patterns: Any) -> str:
        self.calls.append({"repo": repo, "revision": revision, "local": local_files_only, **patterns})
        if local_files_only and not self.cached:
            raise FileNotFoundError(repo)
        if revision == "gone":
            raise OSError("404\nand more")
        self.folder.mkdir(exist_ok=True)
        for name in self.files:
            if any(Path(name).match(pattern) for pattern in patterns.get("allow_patterns", ["*"])):
                (self.folder / name).write_text("{}")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(*files: str) -> Hub:
        made = Hub(tmp_path, *files)
        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=made.snapshot_download))
        return made

    monkeypatch.chdir(tmp_path)
    return make


def test_a_branch_is_asked_for_and_its_commit_returned(hub: Callable[..., Hub]) -> None:
    asked = hub("config.json", "model.safetensors", "pytorch_model.bin")
    for revision in (None, "main"):
        found = find_base("org/name", revision)
        assert (found.folder, found.repo, found.revision) == (asked.folder, "org/name", COMMIT)
    assert [call["local"] for call in asked.calls] == [False, False]
    assert not (asked.folder / "pytorch_model.bin").exists()


def test_older_weights_where_there_are_no_others(hub: Callable[..., Hub]) -> None:
    asked = hub("config.json", "pytorch_model.bin")
    assert (find_base("org/name").folder / "pytorch_model.bin").exists() and len(asked.calls) == 2
    hub("config.json").folder.joinpath("pytorch_model.bin").unlink()
    with pytest.raises(NotACheckpointError, match=r"no weights that are read: expected \*\.safetensors or \*\.bin"):
        find_base("org/name")


def test_a_commit_that_is_cached_whole_asks_nobody(hub: Callable[..., Hub]) -> None:
    asked = hub("config.json", "model.safetensors")
    find_base("org/name", COMMIT)
    assert [call["local"] for call in asked.calls] == [True, False]
    asked.cached = True
    assert find_base("org/name", COMMIT).folder == asked.folder and asked.calls[2:][0]["local"] and len(asked.calls) == 3


def test_a_commit_that_is_cached_in_part_is_fetched(hub: Callable[..., Hub]) -> None:
    asked = hub("config.json", "a.safetensors")
    find_base("org/name", COMMIT)
    asked.cached = True
    index = asked.folder / "model.safetensors.index.json"
    for weight_map, whole in ((None, False), ({"x": "a.safetensors", "y": "b.safetensors"}, False), ({"x": "a.safetensors"}, True)):
        index.write_text(json.dumps({"weight_map": weight_map} if weight_map else []))
        asked.calls.clear()
        find_base("org/name", COMMIT)
        assert [call["local"] for call in asked.calls] == ([True] if whole else [True, False])


def test_side_files_are_fetched_on_demand_at_that_commit(hub: Callable[..., Hub]) -> None:
    asked = hub("config.json", "model.safetensors", "tokenizer.model")
    asked.cached = True
    find_base("org/name", COMMIT, side_files=True)
    assert [call["local"] for call in asked.calls] == [True, False, False]
    assert asked.calls[-1]["revision"] == COMMIT and "*.safetensors" in asked.calls[-1]["ignore_patterns"]


def test_what_cannot_be_fetched(hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub()
    with pytest.raises(NotACheckpointError, match=r"^org/name: the base at gone cannot be fetched.*found OSError: 404\. Is its name"):
        find_base("org/name", "gone")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendError, match=r"needs huggingface_hub.*pip install 'deltapack\[hub\]'"):
        find_base("org/name")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_base("org/name").folder == Path("org/name") and find_base("org/name").repo is None
    assert find_base("./name", beside=tmp_path / "org").folder.resolve() == tmp_path / "org" / "name"
    with pytest.raises(RecipeError, match="a folder has no revisions"):
        find_base("org/name", "main")
    for name in ("nothing", "../nothing", "/a/b/c", "org/name/more"):
        with pytest.raises(NotACheckpointError, match="the base is not there"):
            find_base(name)


def test_names_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_revision("org/name@feature/x") == ("org/name", "feature/x")
    assert split_revision("folder@v1") == ("folder@v1", None) and split_revision("org/name@") == ("org/name@", None)
    (tmp_path / "org" / "name@v1").mkdir(parents=True)
    assert split_revision("org/name@v1") == ("org/name@v1", None)
