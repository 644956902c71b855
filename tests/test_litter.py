"""Killed at any operation on a file: the next run on the same output removes what was left, and writes what an undisturbed one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.builders import ROOT
from support.killing import NAMES
from support.laws import SHARE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
KILLS = max(3, round(10 * SHARE))
"""`DELTAPACK_EXAMPLES=10` kills a hundred of each kind, if it has so many operations."""


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("kills")
    for name in ("in", "out"):
        (folder / name).mkdir()
    command = [sys.executable, "-m", "support.killing", str(folder / "in"), str(folder / "out"), str(KILLS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        found[told["name"]].append(told)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_output_is_left(name: str, kills: dict[str, list[dict[str, Any]]]) -> None:
    assert len(kills[name]) >= 3
    for told in kills[name]:
        assert told["same"] and told["tmp"] == [], told
        # Without --force an output that is there, the last step but for cleaning up, is not written again.
        assert told["code"] == 0 or told["there"], told


def test_kills_did_leave_something(kills: dict[str, list[dict[str, Any]]]) -> None:
    left = {path.rpartition(".")[2] for rows in kills.values() for told in rows for path in told["left"]}
    assert {"partial", "lock", "journal"} <= left


def test_packs_of_a_killed_pull_and_demo_have_the_names_that_are_swept(tmp_path: Path) -> None:
    """They need a Hub and minutes; both claim their output, which sweeps these names."""
    from deltapack.format.atomic import claimed, temporary_sibling

    for folder in (temporary_sibling(tmp_path / "math"), temporary_sibling(tmp_path / "math")):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").write_bytes(b"x")
    others = [".math.partial", ".math.12345678.partial.txt", ".other.12345678.partial", ".math.1234567g.partial", "math.12345678.partial"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    with claimed(tmp_path / "math"):
        assert sorted(os.listdir(tmp_path)) == sorted([*others, ".math.deltapack.lock"])
    assert sorted(os.listdir(tmp_path)) == sorted(others)
