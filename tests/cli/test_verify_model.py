"""`deltapack verify --model`, and ids on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from support.commands import Pair, Run

import deltapack


def test_weights_that_were_not_compared_are_warned_of(run: Run, pair: Pair, tmp_path: Path) -> None:
    """A program may take them instead; a state of training is none."""
    assert run("apply", pair.base, pair.pack, "-o", tmp_path / "out").exit_code == 0
    for name in ("pytorch_model.bin", "optimizer.pt", "a.sig", "b.sig", "c.sig", ".hidden"):
        (tmp_path / "out" / name).write_bytes(b"x")
    for options in ((), ("--quiet",)):
        done = run("verify", pair.pack, "--model", tmp_path / "out", *options)
        assert done.exit_code == 0 and done.stderr.startswith("Warning: weights beside those that were compared")
        assert "'pytorch_model.bin'" in done.stderr and "optimizer" not in done.stderr
        assert ("not compared, as packs hold no such files: " in done.stdout) == (not options)


def test_a_model_that_came_whole(run: Run, pair: Pair, tmp_path: Path) -> None:
    deltapack.apply(pair.base, pair.pack, tmp_path / "out")
    done = run("verify", pair.pack, "--model", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "is what the pack restores: 3 tensors and 1 side file compared" in " ".join(done.stdout.split())
    document = json.loads(run("verify", pair.pack, "--model", tmp_path / "out", "--json").stdout)
    assert document["model"]["content_id"] == document["content_id"] and document["model"]["model"] == str(tmp_path / "out")
    assert "model" not in json.loads(run("verify", pair.pack, "--json").stdout)


def test_another_model(run: Run, pair: Pair) -> None:
    other = run("verify", pair.pack, "--model", pair.finetuned)
    assert other.exit_code == 4 and "has other elements than the pack restores" in " ".join(other.stderr.split())
    both = run("verify", pair.pack, "--base", pair.base, "--model", pair.base)
    assert both.exit_code == 4 and "the tensors are others than" in " ".join(both.stderr.split())


def test_ids_are_shown(run: Run, pair: Pair) -> None:
    with deltapack.open_pack(pair.pack) as pack:
        shown = (pack.id, pack.content_id, pack.index.base_fingerprint)
    for command in ("inspect", "verify"):
        text = run(command, pair.pack).stdout
        assert all(name in text for name in shown), command
        document = json.loads(run(command, pair.pack, "--json").stdout)
        assert (document["id" if command == "inspect" else "pack_id"], document["content_id"], document["base_fingerprint"]) == shown
    (row,) = json.loads(run("log", pair.pack, "--json").stdout)["packs"]
    assert (row["id"], row["content_id"], row["base"]) == shown
    assert shown[2] in run("log", pair.pack).stdout
