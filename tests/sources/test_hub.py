"""Bases by their names: folders, and repositories through the cache of a Hub that is played here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import deltapack
from deltapack.cli.main import cli
from deltapack.errors import BackendError, NotACheckpointError, NotAPackError, RecipeError
from deltapack.merging.basecard import HubName, name_of_base
from deltapack.sources.hub import find_base, parse_hub, split_revision
from deltapack.sources.places import checkpoint_at, pack_at

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


def test_a_file_where_a_repository_is_named() -> None:
    assert split_revision("hf://org/name@v1") == ("org/name", "v1")
    with pytest.raises(RecipeError, match=r"no file of it: expected ORG/NAME or ORG/NAME@REVISION, found hf://org/name/math\.dpk"):
        deltapack.pull("hf://org/name/math.dpk")


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
    with pytest.raises(
        NotACheckpointError, match=r"^org/name: no such file or .* at gone it cannot be fetched.*found OSError: 404\. Is its name"
    ):
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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hf://org/name", ("org/name", None, None)),
        ("hf://models/org/name/", ("org/name", None, None)),
        ("hf:/org/name@v1", ("org/name", "v1", None)),
        ("hf://org/name/math.dpk", ("org/name", None, "math.dpk")),
        ("hf://org/name@v1.0/sub/math.dpk", ("org/name", "v1.0", "sub/math.dpk")),
        ("hf://org/name@refs/pr/3/math.dpk", ("org/name", "refs/pr/3", "math.dpk")),
        ("https://huggingface.co/org/name", ("org/name", None, None)),
        ("https://huggingface.co/org/name/tree/main/", ("org/name", "main", None)),
        ("https://huggingface.co/org/name/blob/v1/a/math.dpk", ("org/name", "v1", "a/math.dpk")),
        ("https://huggingface.co/org/name/resolve/main/math.dpk", None),
        ("org/Qwen2.5-7B", ("org/Qwen2.5-7B", None, None)),
        ("org/name@feature/x", ("org/name", "feature/x", None)),
        ("org/name@", None),
        ("org/math.dpk", None),
        ("org/model.safetensors", None),
        ("gpt2", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("here/name", None),
        ("../name", None),
        ("org/name@a b", None),
    ],
)
def test_what_is_meant_of_the_hub(text: str, named: tuple[str, str | None, str | None] | None, hub: Callable[..., Hub]) -> None:
    Path("here").mkdir()  # a path with a slip: nothing of that name is in it
    found = parse_hub(text)
    assert (None if found is None else (found.repo, found.revision, found.file)) == named


@pytest.mark.parametrize("text", ["hf://", "hf://name", "hf://org/name/../x", "hf://org/name//x", "hf://org/name@", "hf://org/name@a@b"])
def test_addresses_of_the_hub_that_name_nothing(text: str) -> None:
    with pytest.raises(RecipeError, match="expected hf://ORG/NAME"):
        checkpoint_at(text)


class Shelf:
    """A Hub with repositories of real files and its cache, as huggingface_hub shows them."""

    def __init__(self, folder: Path) -> None:
        self.shelf, self.cache, self.online, self.asked = folder / "shelf", folder / "cache", True, 0

    def HfApi(self) -> Shelf:
        return self

    def repo_info(self, repo: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        self.asked += 1
        if not self.online or not (self.shelf / repo).is_dir():
            raise ConnectionError(f"no {repo}\nand more")
        names = [path.relative_to(self.shelf / repo).as_posix() for path in (self.shelf / repo).rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(
        self,
        repo: str,
        *,
        revision: str | None,
        local_files_only: bool = False,
        allow_patterns: list[str] | None = None,
        ignore_patterns: list[str] | None = None,
    ) -> str:
        snapshot = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
        if local_files_only or not self.online:
            if snapshot.is_dir():
                return str(snapshot)
            raise FileNotFoundError(repo)
        for info in self.repo_info(repo, revision=revision, timeout=1).siblings:
            name = info.rfilename
            wanted = allow_patterns is None or any(fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(name, pattern) for pattern in ignore_patterns or ()):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / name).write_bytes((self.shelf / repo / name).read_bytes())
        snapshot.mkdir(parents=True, exist_ok=True)
        return str(snapshot)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    made = Shelf(tmp_path)
    fake = ModuleType("huggingface_hub")
    fake.snapshot_download, fake.HfApi = made.snapshot_download, made.HfApi  # type: ignore[attr-defined]
    fake.__spec__ = ModuleSpec("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    for repo, names in (
        ("org/base", ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model", "1_Pooling/config.json", "model.onnx")),
        ("org/one", ("math.dpk", "README.md")),
        ("org/two", ("b.dpk", "sub/a[1].dpk")),
        ("org/none", ("README.md",)),
    ):
        for name in names:
            (made.shelf / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (made.shelf / repo / name).write_text("{}")
    return made


def test_a_model_is_fetched_whole_but_for_other_formats(shelf: Shelf) -> None:
    for name in ("org/base", "hf://org/base@main", Path("hf://org/base"), "https://huggingface.co/org/base"):
        folder = checkpoint_at(name)
        assert folder.name == COMMIT and name_of_base(folder) == HubName("org/base", COMMIT)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "tokenizer.model", "1_Pooling/config.json"}
    assert checkpoint_at("hf://org/base/model.safetensors") == folder / "model.safetensors"
    with pytest.raises(NotACheckpointError, match=r"has no such file: found x\.safetensors"):
        checkpoint_at("hf://org/base/x.safetensors")


def test_a_pack_is_the_only_one_or_named(shelf: Shelf) -> None:
    assert pack_at("org/one").name == pack_at("hf://org/one/math.dpk").name == "math.dpk"
    assert pack_at("hf://org/two@v1/sub/a[1].dpk").name == "a[1].dpk"
    with pytest.raises(
        NotAPackError, match=r"does not have one pack: expected one \.dpk file, found b\.dpk, sub/a\[1\]\.dpk\. Name one: hf://org/two/b"
    ):
        pack_at("org/two")
    with pytest.raises(NotAPackError, match="found none"):
        pack_at("org/none")
    with pytest.raises(NotAPackError, match=r"^org/gone: no such file or folder here; .* found ConnectionError: no org/gone\. Is its name"):
        pack_at("org/gone")
    shelf.online = False
    assert pack_at("org/one").exists()  # of the cache


def test_names_that_nobody_knows(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotACheckpointError, match="hf download org/gone"):
        deltapack.apply("org/gone", "x.dpk", "out")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert checkpoint_at("org/base") == Path("org/base")  # a path that is not there, as ever
    with pytest.raises(BackendError, match=r"needs huggingface_hub.*deltapack\[hub\]"):
        checkpoint_at("hf://org/base")


def test_the_command_line_tells_what_the_hub_said(shelf: Shelf) -> None:
    for name, said in [
        ("org/gone", "it cannot be fetched, and is not in the cache: found ConnectionError: no org/gone."),
        ("org/none", "one pack: expected one .dpk file, found none."),
        ("org/two", "found b.dpk, sub/a[1].dpk."),
    ]:
        done = CliRunner().invoke(cli, ["inspect", name], env={"COLUMNS": "400"})
        assert done.exit_code == 2 and f"File '{name}' does not exist. " in done.output and said in done.output, done.output
    done = CliRunner().invoke(cli, ["apply", "org/gone", str(shelf.shelf / "org/one/math.dpk"), "-o", "out"], env={"COLUMNS": "400"})
    assert done.exit_code == 2 and "found ConnectionError: no org/gone." in done.output and "hf download org/gone" in done.output


def test_names_stand_wherever_paths_do(shelf: Shelf, tmp_path: Path) -> None:
    tensors = {"w": np.arange(10_000, dtype=np.float32).reshape(100, 100)}
    for repo, more in (("org/base", 0.0), ("org/tuned", 0.01)):
        (shelf.shelf / repo).mkdir(exist_ok=True)
        (shelf.shelf / repo / "config.json").write_text("{}")
        save_file({name: array + np.float32(more) for name, array in tensors.items()}, shelf.shelf / repo / "model.safetensors")
    made = shelf.shelf / "org" / "made"
    made.mkdir()
    deltapack.compress("org/base", "hf://org/tuned", made / "math.dpk", recipe=deltapack.Recipe(exact=True))
    deltapack.apply("org/base@main", "org/made", "out")
    assert Path("out/model.safetensors").read_bytes() == (shelf.shelf / "org/tuned/model.safetensors").read_bytes()
    with deltapack.open_pack("org/made") as pack:
        assert pack.path.name == "math.dpk"
    deltapack.merge("org/base", ["org/made"], "merged", weights=[0.5])
    assert "base_model: org/base" in Path("merged/README.md").read_text()
    for line in ("apply org/base org/made -o again", "inspect hf://org/made", "verify org/made --base org/base"):
        done = CliRunner().invoke(cli, line.split())
        assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(cli, ["inspect", "org/two"])
    assert refused.exit_code != 0


def test_a_pack_in_parts_is_fetched_with_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["math-00001-of-00002.dpk", "math-00002-of-00002.dpk", "math.dpk.index.json", "README.md"]
    made = Hub(tmp_path, *names)
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    api = SimpleNamespace(repo_info=lambda *_, **__: info)
    played = SimpleNamespace(snapshot_download=made.snapshot_download, HfApi=lambda: api)
    monkeypatch.setitem(sys.modules, "huggingface_hub", played)
    for named, file in (("hf://org/packs", "math.dpk.index.json"), ("hf://org/packs/math.dpk", "math.dpk")):
        assert pack_at(named) == made.folder / file
        assert sorted(path.name for path in made.folder.iterdir()) == names[:3]
