"""`push`, over HTTP, to a Hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from support.hub import TOKEN, Handler, Hub, Repo, asks
from support.publishing import Pair, with_base

import deltapack
from deltapack.errors import BackendError, BaseMismatchError, ChecksumError, HubError, NotACheckpointError, OutputError, RecipeError

Made = Callable[..., Pair]


def is_recent() -> bool:
    try:
        return int(version("huggingface_hub").partition(".")[0]) >= 1
    except PackageNotFoundError:
        return False


recent = pytest.mark.skipif(not is_recent(), reason="before 1.0 huggingface_hub tries less again, and reads HF_HUB_OFFLINE once")


def push(pair: Pair, repo: str = "me/math", base: str | None = "org/base", **options: object) -> deltapack.PushReport:
    return deltapack.push(pair.pack, repo, base=base, **options)  # type: ignore[arg-type]


def test_a_new_repository(filled: Hub, pair: Pair) -> None:
    report = push(pair, message="First")
    repo, commit = filled.repos["me/math"], filled.repos["org/base"].branches["main"]
    files = repo.files()
    assert set(files) == {".gitattributes", "README.md", "config.json", "math.dpk", "tokenizer.json"} and not repo.private
    assert files["math.dpk"] == pair.pack.read_bytes() and len(filled.large) == 1
    settings = {"quant_method": "deltapack", "base": "org/base", "revision": commit, "pack": "math.dpk"}
    assert json.loads(files["config.json"])["quantization_config"] == settings
    assert report.commit == repo.branches["main"] and report.commit_url == f"{filled.url}/me/math/commit/{report.commit}"
    assert (report.url, report.base, report.base_revision) == (f"{filled.url}/me/math", "org/base", commit)
    assert report.files == {name: len(data) for name, data in files.items() if name != ".gitattributes"}
    assert report.card.encode() == files["README.md"] and filled.messages == ["First"] and not report.dry_run and not report.notes
    assert json.loads(json.dumps(report.to_json()))["files"]["math.dpk"] == pair.pack.stat().st_size


def test_the_card_places_it_under_its_base(filled: Hub, pair: Pair) -> None:
    from huggingface_hub import ModelCard

    card: Any = ModelCard(push(pair).card)
    said = card.data.to_dict()
    assert said == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "deltapack",
        "license": "apache-2.0",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "tags": ["chat", "deltapack"],
    }


def test_a_dry_run_uploads_nothing(filled: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    report = push(pair, dry_run=True)
    assert report.dry_run and report.commit is None and report.commit_url is None
    assert "me/math" not in filled.repos and not [asked for asked in filled.asked if asked.startswith(("POST", "PUT"))]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = push(pair)
    assert (done.card, done.files) == (report.card, report.files)


@recent
def test_a_process_of_its_own(filled: Hub, pair: Pair, tmp_path: Path) -> None:
    """Parts of huggingface_hub are there once somebody has imported them: here nobody has."""
    own = {
        "HF_ENDPOINT": filled.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "deltapack", *words], env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "license: apache-2.0" in run("card", str(pair.pack), "--base", "org/base")
    assert "would go to" in run("push", str(pair.pack), "me/math", "--base", "org/base", "--dry-run") and "me/math" not in filled.repos
    run("push", str(pair.pack), "me/math", "--base", "org/base", "-q")
    run("pull", "me/math", "-o", "fetched", "-q")
    assert (tmp_path / "fetched" / "math.dpk").read_bytes() == pair.pack.read_bytes()


@recent
def test_a_dry_run_without_a_network_says_what_it_did_not_see(filled: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    push(pair)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (note,) = push(pair, dry_run=True).notes
    assert "cannot be looked at (HF_HUB_OFFLINE is set)" in note
    with pytest.raises(HubError, match=r"me/math: the repository cannot be looked at: found HF_HUB_OFFLINE is set\. Unset it\."):
        push(pair)


def test_pushing_again_replaces_what_is_ours_alone(filled: Hub, pair: Pair) -> None:
    push(pair)
    repo = filled.repos["me/math"]
    repo.commit({"notes.txt": b"mine", "other.dpk": b"another pack"})
    first = repo.files()["README.md"]
    shutil.copy(pair.pack, pair.pack.with_name("better.dpk"))
    deltapack.push(pair.pack.with_name("better.dpk"), "me/math", base="org/base")
    files = repo.files()
    assert files["notes.txt"] == b"mine" and {"math.dpk", "other.dpk", "better.dpk"} <= set(files)
    assert json.loads(files["config.json"])["quantization_config"]["pack"] == "better.dpk"
    assert files["README.md"] != first and b"better.dpk" in files["README.md"]


def test_a_card_of_others_keeps_its_text(filled: Hub, pair: Pair) -> None:
    repo = filled.repos["me/math"] = Repo()
    theirs = "---\nlicense: mit # ours\ntags:\n- maths\n# a comment\nlanguage: de\n---\n\n# Mine\n\n\ttext  \r\n"
    repo.commit({"README.md": theirs.encode()})
    report = push(pair)
    front = "---\nlicense: mit # ours\ntags:\n- maths\n- deltapack\n# a comment\nlanguage: de\nbase_model: org/base\n"
    assert report.card == (
        f"{front}base_model_relation: finetune\nlibrary_name: deltapack\npipeline_tag: text-generation\n---\n\n# Mine\n\n\ttext  \r\n"
    )
    assert repo.files()["README.md"].decode() == report.card
    assert push(pair).card == report.card


def test_the_card_of_the_pack_is_kept_and_names_the_base(hub: Hub, made: Made) -> None:
    pair = made("---\nbase_model: org/base\nlibrary_name: transformers\n---\n\n# A fine-tune\n")
    with_base(hub, pair)
    report = push(pair, base=None)
    assert report.card.endswith("---\n\n# A fine-tune\n") and "library_name: deltapack\n" in report.card
    assert "- transformers\n- deltapack" in report.card and report.card.count("org/base") == 1
    assert report.notes == [
        "the card's library_name was transformers, and is deltapack now: the repository has a pack in place of weights",
        "the card's text does not say how a pack is loaded; --card new writes one that does",
    ]
    written = push(pair, card="new", dry_run=True)
    assert "# A fine-tune" not in written.card and "deltapack pull me/math" in written.card and written.notes == []


def test_the_card_of_the_user_comes_first(hub: Hub, made: Made, tmp_path: Path) -> None:
    pair = made("the fine-tune's")
    with_base(hub, pair)
    mine = tmp_path / "card.md"
    mine.write_text("---\nbase_model: org/other\n---\nMy own.\n")
    report = push(pair, card=mine)
    assert report.card.endswith("---\nMy own.\n") and "base_model:\n- org/base\n- org/other\n" in report.card
    assert report.notes[0] == "the card named org/other as base_model, and names org/base, too"
    mine.write_text("---\n{: :\n---\n")
    with pytest.raises(RecipeError, match=r"card\.md"):
        push(pair, card=mine)
    with pytest.raises(RecipeError, match=r"none\.md: the card cannot be read: No such file"):
        push(pair, card=tmp_path / "none.md")


def test_results_of_another_model_are_told(hub: Hub, made: Made) -> None:
    card = "---\nmodel-index: []\n---\nLoad it with deltapack.\n"
    lossy, exact = made(card), made(card, name="exact", exact=True)
    with_base(hub, lossy)
    assert push(lossy).notes == [
        "the results in the card's front matter were measured on another model than what the pack restores: it is not exact"
    ]
    assert push(exact, "me/exact").notes == []


def test_packs_of_adapters_and_merges_say_so(hub: Hub, made: Made, tmp_path: Path) -> None:
    adapter, other = made("---\nlibrary_name: peft\n---\n"), made(name="other")
    with_base(hub, adapter)
    assert "base_model_relation: adapter\n" in push(adapter).card
    merged = tmp_path / "merged.dpk"
    deltapack.merge(adapter.base, [adapter.pack, other.pack], merged)
    report = deltapack.push(merged, "me/merged", base="org/base")
    assert "base_model:\n- org/base\nbase_model_relation: merge\n" in report.card and "# Merge of `math` and `other`" in report.card


def test_a_pack_that_transformers_does_not_load(hub: Hub, made: Made) -> None:
    pair = made(config=False)
    with_base(hub, pair)
    report = push(pair)
    assert set(report.files) == {"README.md", "math.dpk"} and "from_pretrained" not in report.card and "deltapack apply" in report.card
    assert report.notes == ["the result has no config.json: the repository is for `deltapack apply`, and not for transformers"]


def test_an_exact_pack_says_so(hub: Hub, made: Made) -> None:
    pair = made(exact=True)
    with_base(hub, pair)
    assert "Every tensor comes back bit for bit." in push(pair).card


def test_private_repositories(filled: Hub, pair: Pair) -> None:
    push(pair, private=True)
    assert filled.repos["me/math"].private
    push(pair, private=True)
    filled.repos["me/open"] = Repo()
    filled.repos["me/open"].commit({"a.txt": b""})
    with pytest.raises(RecipeError, match="me/open: the repository is there, and public"):
        push(pair, "me/open", private=True)
    assert set(filled.repos["me/open"].files()) == {"a.txt"}


def test_branches_and_pull_requests(filled: Hub, pair: Pair) -> None:
    push(pair, revision="v2")
    repo = filled.repos["me/math"]
    assert set(repo.files()) == {".gitattributes"} and "math.dpk" in repo.files("v2")
    repo.commit({"README.md": b"of the main branch"})
    assert "of the main branch" not in push(pair, revision="v2").card
    assert push(pair, revision="v3").card.endswith("---\n\nof the main branch")
    assert "math.dpk" in repo.files("v3") and set(repo.files()) == {".gitattributes", "README.md"}
    before = repo.branches["main"]
    report = push(pair, create_pr=True)
    assert report.pull_request == f"{filled.url}/me/math/discussions/1" and repo.branches["main"] == before
    assert report.commit is not None and "math.dpk" in repo.commits[report.commit]


def test_weights_of_others_are_not_hidden(filled: Hub, pair: Pair) -> None:
    repo = filled.repos["me/math"] = Repo()
    repo.commit({"model.safetensors": b"\0" * 10, "config.json": b"{}"})
    with pytest.raises(OutputError, match=r"holds weights, .*: found model\.safetensors\. Choose a repository of its own"):
        push(pair)
    assert repo.files()["config.json"] == b"{}"


def test_what_was_changed_meanwhile_is_not_overwritten(filled: Hub, pair: Pair) -> None:
    push(pair)
    repo = filled.repos["me/math"]

    def meanwhile(handler: Handler) -> bool:
        if "/commit/" in handler.path:
            repo.commit({"README.md": b"by another"})
        return False

    filled.faults.append(meanwhile)
    pair.pack.with_name("new.dpk").write_bytes(pair.pack.read_bytes())
    with pytest.raises(HubError, match=r"cannot be uploaded: found the repository was changed at the same time \(412\)\. Run it again"):
        deltapack.push(pair.pack.with_name("new.dpk"), "me/math", base="org/base")
    assert repo.files()["README.md"] == b"by another" and "new.dpk" not in repo.files()


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ("POST /api/repos/create", 401, r"cannot be made: found no token, or one that the Hub does not know \(401\)\. `hf auth login`"),
        ("POST /api/repos/create", 403, r"cannot be made: found the token has no right to do this \(403\)\. Is the owner right\?"),
        ("POST .*preupload", 403, r"cannot be uploaded: found the token has no right"),
        ("PUT /upload", 500, r"cannot be uploaded: found the Hub has trouble of its own \(500\)\. Run it again later\.$"),
        ("POST .*objects/batch", 429, r"cannot be uploaded: found the Hub has had too many requests \(429\)\. Wait"),
        ("POST .*commit", 409, r"found the repository was changed at the same time \(409\)"),
        ("POST .*commit", 404, r"found no such repository or revision, or a private one \(404\)"),
        ("GET /api/models/me/math", 503, r"cannot be looked at: found the Hub has trouble of its own \(503\)"),
    ],
)
def test_what_the_hub_refuses(filled: Hub, pair: Pair, request_: str, status: int, message: str) -> None:
    filled.fail(request_, status)
    with pytest.raises(HubError, match=f"^me/math: .*{message}"):
        push(pair)
    repo = filled.repos.get("me/math")
    assert repo is None or set(repo.files()) == {".gitattributes"}


@recent
@pytest.mark.parametrize(("request_", "status"), [("PUT /upload", 500), ("POST .*objects/batch", 429), ("POST .*preupload", 503)])
def test_what_passes_is_tried_again(filled: Hub, pair: Pair, request_: str, status: int) -> None:
    filled.fail(request_, status, times=2)
    assert push(pair).commit == filled.repos["me/math"].branches["main"]
    assert filled.repos["me/math"].files()["math.dpk"] == pair.pack.read_bytes()


def test_a_pack_of_another_machine_is_refused_at_once(filled: Hub, pair: Pair) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/pushed/math.dpk", pair.pack.read_bytes())
    with pytest.raises(RecipeError, match=r"memory://pushed/math\.dpk: this needs a local file\. Download it first"):
        deltapack.push("memory://pushed/math.dpk", "me/math", base="org/base")
    assert filled.asked == []


def test_tokens(filled: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"me/math: uploading needs a token\. `hf auth login` stores one"):
        push(pair)
    assert filled.asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(HubError, match=r"the token has no right to do this \(403\)"):
        push(pair)


def test_a_gated_repository(filled: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.repos["me/math"] = Repo(gated=True)
    filled.repos["me/math"].commit({"a.txt": b""})
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(HubError, match=r"gated \(403\)\. Ask for access at https://huggingface\.co/me/math\. `hf auth login`"):
        push(pair)


def test_no_network(filled: Hub, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(pair)
    filled.url = "http://127.0.0.1:9"  # nobody listens there
    asks(monkeypatch, filled, tmp_path / "cache")
    commit = filled.repos["org/base"].branches["main"]
    with pytest.raises((HubError, NotACheckpointError), match=r"cannot be (reached|fetched)"):
        push(pair, base=f"org/base@{commit}")


def test_bases(filled: Hub, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"no base is named.*Say --base ORG/NAME"):
        push(pair, base=None)
    with pytest.raises(RecipeError, match="the base is a folder"):
        push(pair, base=str(pair.base))
    with pytest.raises(NotACheckpointError, match=r"org/none: no such file or folder here; .* cannot be fetched"):
        push(pair, base="org/none")
    with pytest.raises(NotACheckpointError, match="Hub at v9 it cannot be fetched"):
        push(pair, base="org/base@v9")
    filled.repos["org/wrong"] = Repo()
    filled.repos["org/wrong"].commit({path.name: path.read_bytes() for path in pair.tuned.iterdir()})
    with pytest.raises(BaseMismatchError):
        push(pair, base="org/wrong")
    assert "me/math" not in filled.repos
    first = filled.repos["org/base"].branches["main"]
    filled.repos["org/base"].commit({"model.safetensors": (pair.tuned / "model.safetensors").read_bytes()})
    assert push(pair, base=f"org/base@{first}").base_revision == first
    with pytest.raises(BaseMismatchError):
        push(pair)


@pytest.mark.parametrize(
    "name", ["math", "me/", "/math", "me/a b", "me/a/b", "https://huggingface.co/me/math", "me/..", "me/x.git", "me/" + "x" * 99]
)
def test_names_of_repositories(name: str, filled: Hub, pair: Pair) -> None:
    with pytest.raises(RecipeError, match="this is no name of a repository: expected ORG/NAME"):
        push(pair, name)
    assert filled.asked == []


def test_a_damaged_pack_is_told_before_anything_is_asked(filled: Hub, pair: Pair) -> None:
    data = bytearray(pair.pack.read_bytes())
    data[200] ^= 1
    pair.pack.write_bytes(bytes(data))
    with pytest.raises(ChecksumError):
        push(pair)
    assert filled.asked == []


def test_an_empty_message(pair: Pair) -> None:
    with pytest.raises(RecipeError, match="the message is empty"):
        push(pair, message=" ")


def test_without_huggingface_hub(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(pair), lambda: deltapack.pull("me/math", pair.pack.with_name("out"))):
        with pytest.raises(BackendError, match=r"the Hugging Face Hub needs huggingface_hub: found .*pip install 'deltapack\[hub\]'"):
            call()
    assert "base_model: org/base" in deltapack.model_card(pair.pack, base="org/base")


def test_a_signature_goes_along_and_comes_along(filled: Hub, pair: Pair, tmp_path: Path) -> None:
    """It is no file of the model: nothing here looks into it, and a pack without one has none."""
    assert "math.dpk.sig" not in deltapack.push(pair.pack, "me/plain", base="org/base").files
    pair.pack.with_name("math.dpk.sig").write_bytes(b"{}")
    report = deltapack.push(pair.pack, "me/math", base="org/base")
    assert report.files["math.dpk.sig"] == 2 and filled.repos["me/math"].files()["math.dpk.sig"] == b"{}"
    filled.repos["me/math"].commit({"other.dpk.sig": b"{}"})
    got = deltapack.pull("me/math", tmp_path / "got")
    assert (tmp_path / "got" / "math.dpk.sig").read_bytes() == b"{}" and got.files["math.dpk.sig"] == 2
    assert not (tmp_path / "got" / "other.dpk.sig").exists()
    deltapack.pull("me/math", tmp_path / "alone.dpk")
    assert sorted(path.name for path in tmp_path.glob("alone*")) == ["alone.dpk"]


def test_cards_and_configs_of_others_without_end(filled: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The base's card is taken for none, one of the repository is not lost, and config.json of what is pulled says nothing."""
    push(pair)
    monkeypatch.setattr("deltapack.publishing.contents._LARGEST_OTHERS", 40)
    assert "apache-2.0" not in deltapack.model_card(pair.pack, base="org/base")
    with pytest.raises(OutputError, match="the card of the repository is too long"):
        push(pair)
    assert deltapack.pull("me/math", tmp_path / "pulled").base is None
