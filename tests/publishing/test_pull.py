"""`pull`, over HTTP, from a Hub on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.hub import Handler, Hub, Repo
from support.publishing import Pair

import deltapack
from deltapack.errors import ChecksumError, DeltapackError, FormatError, HubError, LimitError, NotAPackError, OutputError, RecipeError
from deltapack.limits import DEFAULT_LIMITS
from deltapack.publishing import pulling
from deltapack.publishing.hub import asking


@pytest.fixture
def pushed(filled: Hub, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """It has the pack as `me/math`."""
    deltapack.push(pair.pack, "me/math", base="org/base")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return filled


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_folder_of_the_name_of_the_repository(pushed: Hub, pair: Pair) -> None:
    repo = pushed.repos["me/math"]
    repo.commit({"notes.txt": b"small", "model.py": b"import os", "picture.png": b"\0", "pytorch_model.bin": b"\0"})
    report = deltapack.pull("me/math")
    assert report.pack == Path("math/math.dpk") and report.pack.read_bytes() == pair.pack.read_bytes()
    assert names(Path("math")) == {"README.md", "config.json", "math.dpk", "notes.txt", "tokenizer.json"}
    assert {name: (Path("math") / name).read_bytes() for name in report.files} == {name: repo.files()[name] for name in report.files}
    assert (report.repo, report.commit, report.base) == ("me/math", repo.branches["main"], "org/base")
    assert report.base_revision == pushed.repos["org/base"].branches["main"] and report.notes == []
    assert os.listdir() == ["math"] and json.loads(json.dumps(report.to_json()))["pack"] == "math/math.dpk"


def test_what_was_pulled_restores(pushed: Hub, pair: Pair, tmp_path: Path) -> None:
    report = deltapack.pull("me/math")
    deltapack.apply(pair.base, report.pack, tmp_path / "a")
    deltapack.apply(pair.base, pair.pack, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_the_pack_alone(pushed: Hub, pair: Pair) -> None:
    report = deltapack.pull("me/math", "sub/mine.dpk")
    assert report.pack == Path("sub/mine.dpk") and report.pack.read_bytes() == pair.pack.read_bytes()
    assert names(Path()) == {"sub", "sub/mine.dpk"} and set(report.files) == {"math.dpk"} and report.base == "org/base"


def test_revisions(pushed: Hub) -> None:
    repo = pushed.repos["me/math"]
    first = repo.branches["main"]
    repo.commit({"math.dpk": b"no pack"})
    assert deltapack.pull(f"me/math@{first}", "a").commit == first
    assert deltapack.pull("me/math", "b", revision=first).commit == first
    with pytest.raises(RecipeError, match="the revision is given twice"):
        deltapack.pull(f"me/math@{first}", "c", revision="main")
    with pytest.raises(HubError, match=r"me/math: the repository cannot be read: found no such repository or revision"):
        deltapack.pull("me/math@v9", "c")
    with pytest.raises(FormatError, match="pack"):
        deltapack.pull("me/math", "c")
    assert sorted(os.listdir()) == ["a", "b"]


def test_several_packs_and_none(pushed: Hub, pair: Pair) -> None:
    repo = pushed.repos["me/several"] = Repo()
    data = pair.pack.read_bytes()
    repo.commit({"a.dpk": data, "b.dpk": data, "README.md": b"two"})
    with pytest.raises(RecipeError, match=r"me/several: the repository has several packs: found a\.dpk, b\.dpk\. Name one with --pack"):
        deltapack.pull("me/several")
    report = deltapack.pull("me/several", pack="b.dpk")
    assert names(Path("several")) == {"README.md", "b.dpk"} and report.base is None
    with pytest.raises(NotAPackError, match=r"no such pack: found 'c\.dpk'\. Did you mean"):
        deltapack.pull("me/several", "out", pack="c.dpk")
    with pytest.raises(NotAPackError, match=r"org/base: the repository has no pack: .*A model: hf download org/base"):
        deltapack.pull("org/base", "out")
    for settings in ({"pack": "model.safetensors"}, {"pack": ["a.dpk"]}, {"pack": "../a.dpk"}):
        said = {"quantization_config": {"quant_method": "deltapack", **settings}}
        repo.commit({"config.json": json.dumps(said).encode(), "model.safetensors": b"\0"})
        with pytest.raises(NotAPackError, match="no such pack"):
            deltapack.pull("me/several", "out")
    assert os.listdir() == ["several"]


def test_config_of_others_is_passed_over(pushed: Hub, pair: Pair) -> None:
    repo = pushed.repos["me/other"] = Repo()
    for number, config in enumerate(
        (b"[", b"[]", b"{}", b'{"quantization_config": {"quant_method": "awq", "pack": "no.dpk"}}', b'{"quantization_config": 1}')
    ):
        repo.commit({"config.json": config, "a.dpk": pair.pack.read_bytes()})
        assert deltapack.pull("me/other", f"out{number}").base is None


@pytest.mark.parametrize("name", ["math.dpk", "README.md"])
def test_what_came_is_compared_with_what_is_listed(pushed: Hub, name: str) -> None:
    """Of the length that was promised, with a byte changed on the way: LFS by SHA-256, others by git's digest."""
    data = bytearray(pushed.repos["me/math"].files()[name])
    data[-1] ^= 1

    def changed(handler: Handler) -> bool:
        if handler.command != "GET" or not handler.path.endswith(name) or "/resolve/" not in handler.path:
            return False
        handler.answer(200, bytes(data), {"ETag": '"x"', "X-Repo-Commit": pushed.repos["me/math"].branches["main"]})
        return True

    pushed.faults.append(changed)
    with pytest.raises(ChecksumError, match=rf"me/math: {name} is not what the Hub lists: expected .* bytes, [0-9a-f]+, found"):
        deltapack.pull("me/math")
    assert os.listdir() == []


def test_a_damaged_pack(pushed: Hub, pair: Pair) -> None:
    data = bytearray(pair.pack.read_bytes())
    data[200] ^= 1
    pushed.repos["me/math"].commit({"math.dpk": bytes(data)})
    with pytest.raises(ChecksumError):
        deltapack.pull("me/math")
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["../evil.dpk", "/evil.dpk", "a/../../evil.dpk", "con:.dpk\n"])
def test_hostile_names_of_packs(pushed: Hub, pair: Pair, name: str) -> None:
    repo = pushed.repos["me/evil"] = Repo()
    repo.commit({name: pair.pack.read_bytes()})
    with pytest.raises(DeltapackError):
        deltapack.pull("me/evil")
    assert os.listdir() == [] and not (Path("..") / Path(name).name).exists()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_hostile_names_of_side_files_are_not_fetched(pushed: Hub, pair: Pair, name: str) -> None:
    repo = pushed.repos["me/evil"] = Repo()
    repo.commit({"a.dpk": pair.pack.read_bytes(), name: b"evil"})
    try:
        deltapack.pull("me/evil")
    except FormatError as error:
        assert f"found {name} (rule R13)" in str(error)
    assert names(Path()) <= {"evil", "evil/a.dpk"} and not Path("../evil.txt").exists()


def test_large_files_stay(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed.repos["me/math"].commit({"long.txt": b"x" * 5000})
    monkeypatch.setattr(pulling, "DEFAULT_LIMITS", replace(DEFAULT_LIMITS, side_file_bytes=4000))
    report = deltapack.pull("me/math")
    assert report.notes == ["left on the Hub, as too large: long.txt"] and "long.txt" not in names(Path("math"))


def test_a_large_config_is_not_fetched(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was, and read into memory, however large."""
    monkeypatch.setattr(pulling, "DEFAULT_LIMITS", replace(DEFAULT_LIMITS, side_file_bytes=4000))
    pushed.repos["me/math"].commit({"config.json": b" " * 5000 + b"{}"})
    pushed.asked.clear()
    report = deltapack.pull("me/math")
    assert report.notes == ["left on the Hub, as too large: config.json"] and "config.json" not in report.files
    assert report.base is None and deltapack.pull("me/math", "alone.dpk").notes == []
    assert not [asked for asked in pushed.asked if "resolve" in asked and "config.json" in asked]


@pytest.mark.parametrize("limits", [{"side_files": 5}, {"side_files_bytes": 500}], ids=str)
def test_more_files_than_a_pack_may_hold(limits: dict[str, int], pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "DEFAULT_LIMITS", replace(DEFAULT_LIMITS, **limits))
    pushed.repos["me/math"].commit({f"{number}.txt": b"x" * 100 for number in range(6)})
    with pytest.raises(LimitError, match=r"me/math: the repository has too many files beside the pack: expected at most .*pack alone\."):
        deltapack.pull("me/math")
    assert os.listdir() == [] and deltapack.pull("me/math", "a.dpk").pack == Path("a.dpk")


@pytest.mark.parametrize(
    "file",
    [{"rfilename": 5}, {"rfilename": "a.dpk", "size": "x"}, {"rfilename": "a.dpk", "size": 1e999}, {"rfilename": "a.dpk", "size": -1}],
)
def test_a_hub_that_lists_nonsense(file: dict[str, Any], pushed: Hub) -> None:
    def nonsense(handler: Handler) -> bool:
        if "/api/models/me/math" not in handler.path:
            return False
        handler.answer(200, {"id": "me/math", "sha": "a" * 40, "siblings": [file]}, {"Content-Type": "application/json"})
        return True

    pushed.faults.append(nonsense)
    with pytest.raises(HubError, match="me/math: the repository cannot be read: found "):
        deltapack.pull("me/math")
    assert os.listdir() == []


@pytest.mark.parametrize("fault", [AttributeError("no such thing"), TypeError("an argument too many"), ValueError("of ours")], ids=repr)
def test_faults_of_our_own_are_no_errors_of_the_hub(fault: Exception) -> None:
    with pytest.raises(type(fault)) as caught, asking("me/math", "it fails"):
        raise fault
    assert caught.value is fault


def test_errors_of_the_hub_by_where_they_come_from() -> None:
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import errors

    for doing in (lambda: hub.HfApi().model_info("a//b"), lambda: hub.ModelInfo(), lambda: Path("/nowhere/at/all").read_bytes()):
        with pytest.raises(HubError, match="me/math: it fails"), asking("me/math", "it fails"):
            doing()
    for error in (errors.EntryNotFoundError("x"), errors.HFValidationError("x")):
        with pytest.raises(HubError, match="me/math: it fails"), asking("me/math", "it fails"):
            raise error


def test_a_file_that_appears_meanwhile_is_not_replaced(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(path: Path, **options: Any) -> None:
        Path("a.dpk").write_bytes(b"somebody's")

    monkeypatch.setattr(pulling, "verify", verify)
    with pytest.raises(OutputError, match="the output exists"):
        deltapack.pull("me/math", "a.dpk")
    assert Path("a.dpk").read_bytes() == b"somebody's" and os.listdir() == ["a.dpk"]


def test_names_that_no_file_has() -> None:
    with pytest.raises(RecipeError, match=r"out is not a path.*NUL"):
        deltapack.pull("me/math", "a\0b")


def test_outputs_that_exist(pushed: Hub) -> None:
    Path("math").mkdir()
    Path("a.dpk").touch()
    for out in (None, "a.dpk"):
        with pytest.raises(OutputError, match="the output exists"):
            deltapack.pull("me/math", out)
    assert os.listdir("math") == []


def test_gated_private_and_absent(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed.repos["me/gated"] = Repo(gated=True)
    pushed.repos["me/gated"].commit({"a.dpk": b""})
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"gated \(401\)\. Ask for access at https://huggingface\.co/me/gated"):
        deltapack.pull("me/gated")
    with pytest.raises(HubError, match=r"no token, or one that the Hub does not know \(401\)"):
        deltapack.pull("me/none")
    with pytest.raises(RecipeError, match="no name of a repository"):
        deltapack.pull("math")


def test_a_download_that_breaks_off_leaves_nothing(pushed: Hub) -> None:
    pushed.fail(r"GET .*resolve.*math\.dpk", 500)
    with pytest.raises(HubError, match=r"math\.dpk cannot be fetched: found the Hub has trouble of its own \(500\)"):
        deltapack.pull("me/math")
    assert os.listdir() == []
