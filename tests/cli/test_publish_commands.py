"""`deltapack push`, `pull` and `card`: what they hand on, what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Pair, Run, StandIn

import deltapack
from deltapack.errors import HubError
from deltapack.publishing import contents

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: mit\n---\n\n# math\n"


def pushed(**changes: object) -> deltapack.PushReport:
    fields = {
        "repo": "me/math",
        "url": "https://huggingface.co/me/math",
        "commit": COMMIT,
        "commit_url": f"https://huggingface.co/me/math/commit/{COMMIT}",
        "pull_request": None,
        "base": "org/base",
        "base_revision": COMMIT,
        "files": {"README.md": 1234, "math.dpk": 500_000},
        "card": CARD,
        "notes": ["a note"],
    }
    return deltapack.PushReport(**{**fields, **changes})  # type: ignore[arg-type]


def test_push(run: Run, pair: Pair, stand_in: StandIn, tmp_path: Path) -> None:
    recorder = stand_in("push", pushed(pull_request="https://huggingface.co/me/math/discussions/1"))
    card = tmp_path / "card.md"
    card.write_text(CARD)
    options = ["--base", "org/base", "--card", card, "--private", "--revision", "v2", "--message", "First", "--create-pr", "--workers", 1]
    result = run("push", pair.pack, "me/math", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert recorder.args == (pair.pack, "me/math")
    assert recorder.kwargs == {
        "base": "org/base",
        "card": card,
        "private": True,
        "revision": "v2",
        "message": "First",
        "create_pr": True,
        "dry_run": False,
        "quiet": True,
        "workers": 1,
        "progress": None,
    }
    for told in (
        f"commit        https://huggingface.co/me/math/commit/{COMMIT}",
        f"org/base at {COMMIT}",
        "discussions/1",
        "501.2 kB in all",
    ):
        assert told in result.stdout
    assert "Note: a note" in result.stdout and "# math" not in result.stdout


def test_a_dry_run_shows_the_card(run: Run, pair: Pair, stand_in: StandIn) -> None:
    recorder = stand_in("push", pushed(dry_run=True, commit=None, commit_url=None, card=f"{CARD}\x1b[31m"))
    result = run("push", pair.pack, "me/math", "--dry-run")
    assert recorder.kwargs["dry_run"] and recorder.kwargs["base"] is None
    assert "would go to  https://huggingface.co/me/math" in result.stdout and f"\n{CARD}\\x1b[31m\n" in result.stdout
    assert "commit" not in result.stdout
    assert run("push", pair.pack, "me/math", "--quiet").stdout == "" and recorder.kwargs["quiet"]
    document = json.loads(run("push", pair.pack, "me/math", "--json").stdout)
    assert document["files"]["math.dpk"] == 500_000 and document["card"].startswith(CARD) and recorder.kwargs["quiet"]


def test_what_the_hub_refuses_is_an_error(run: Run, pair: Pair, stand_in: StandIn) -> None:
    stand_in("push", HubError("the pack cannot be uploaded", path="me/math", found="no token", hint="`hf auth login`."))
    result = run("push", pair.pack, "me/math")
    assert result.exit_code == 1 and result.stderr == "Error: me/math: the pack cannot be uploaded: found no token. `hf auth login`.\n"
    assert run("push", pair.base, "me/math").exit_code == 2
    assert run("push", pair.pack).exit_code == 2


@pytest.mark.parametrize(
    ("base", "revision", "shown"), [("org/base", COMMIT, f"org/base@{COMMIT}"), ("a b", None, "'a b'"), (None, None, "BASE")]
)
def test_pull(run: Run, stand_in: StandIn, base: str | None, revision: str | None, shown: str) -> None:
    report = deltapack.PullReport("me/math", COMMIT, Path("math/math.dpk"), {"math.dpk": 500_000}, base, revision, ["a note"])
    recorder = stand_in("pull", report)
    result = run("pull", "me/math@v1", "-o", "math", "--pack", "math.dpk", "--workers", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert recorder.args == ("me/math@v1", Path("math")) and recorder.kwargs == {"pack": "math.dpk", "quiet": True, "workers": 2}
    assert result.stdout.endswith(f"Note: a note\n\nNext: deltapack apply {shown} math/math.dpk -o restored/\n")
    assert f"me/math at {COMMIT}" in result.stdout and "500.0 kB in 1 file\n" in result.stdout
    assert run("pull", "me/math", "--quiet").stdout == "" and recorder.args[1] is None
    assert json.loads(run("pull", "me/math", "--json").stdout)["pack"] == "math/math.dpk"


def test_card(run: Run, pair: Pair, tmp_path: Path) -> None:
    result = run("card", pair.pack)
    assert result.exit_code == 0 and result.stdout.startswith("---\nlibrary_name: deltapack\n") and "ORG/NAME" in result.stdout
    out = tmp_path / "README.md"
    assert run("card", pair.pack, "--repo", "me/math", "-o", out).stdout == f"card  {out}\n" and "deltapack pull me/math" in out.read_text()
    assert run("card", pair.pack, "-o", out, "--force", "--quiet").output == ""
    document = json.loads(run("card", pair.pack, "--base", "org/nowhere", "-o", out, "--force", "--json").stdout)
    assert (document["card"], document["out"]) == (out.read_text(), str(out)) and "org/nowhere" in document["notes"][0]
    quiet = run("card", pair.pack, "--base", "org/nowhere", "-q")
    assert "base_model: org/nowhere" in quiet.stdout and quiet.stderr == ""
    assert run("card", pair.pack, "-o", out).exit_code == 1
    assert run("card", pair.pack, "--card", out, "-o", out, "--force").exit_code == 0
    assert run("card", pair.pack, "--repo", "math").exit_code == 2


def test_a_card_without_what_its_base_says_is_told_of(run: Run, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_fetched", lambda repo, revision, name: (None, None))
    alone, beside = run("card", pair.pack), run("card", pair.pack, "--base", "org/nowhere")
    assert "base_model" not in alone.stdout and "no base is named" in alone.stderr and "--base ORG/NAME" in " ".join(alone.stderr.split())
    assert "base_model: org/nowhere" in beside.stdout and "Note: the card of org/nowhere cannot be read" in beside.stderr
    monkeypatch.setattr(contents, "_fetched", lambda repo, revision, name: (b"---\nlicense: mit\n---\n", None))
    found = run("card", pair.pack, "--base", "org/base")
    assert "license: mit" in found.stdout and found.stderr == ""
