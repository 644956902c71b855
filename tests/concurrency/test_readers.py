"""Readers while an output is replaced: the old one or the new one, or an error that says that it changed; never a mixture."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import read_file
from support.laws import SHARE
from support.together import at_once

import deltapack
from deltapack.errors import DeltapackError

REPLACED = max(4, round(20 * SHARE))


def while_replaced(replace: Callable[[int], object], read: Callable[[], Any], wanted: list[Any], tried: Counter[str], what: str) -> None:
    """Replace an output, one after the other, while two threads read it."""
    over = threading.Event()

    def write() -> None:
        try:
            for number in range(REPLACED):
                replace(number % 2)
        finally:
            over.set()

    def look() -> Counter[str]:
        seen: Counter[str] = Counter()
        while not (over.is_set() and seen):
            try:
                found = read()
            except (DeltapackError, FileNotFoundError) as error:
                seen[f"told: {type(error).__name__}"] += 1
                continue
            assert found in wanted, "a mixture"
            seen["the old one" if found == wanted[0] else "the new one"] += 1
        return seen

    results = at_once([write, look, look])
    for result in results:
        if isinstance(result, BaseException):
            raise result
    for seen in results[1:]:
        tried.update({f"reads while {what} is replaced: {outcome}": count for outcome, count in seen.items()})


def test_a_pack(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    out = tmp_path / "out.dpk"

    def replace(number: int) -> None:
        deltapack.compress(model / "base", model / f"tuned-{number}", out, recipe=deltapack.Recipe(drop_rate=0.5), force=True, workers=1)

    ids = []
    for number in range(2):
        replace(number)
        ids.append(deltapack.verify(out).pack_id)
    while_replaced(replace, lambda: deltapack.verify(out, workers=1).pack_id, ids, tried, "a pack")


def test_a_file(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    out = tmp_path / "out.safetensors"

    def replace(number: int) -> None:
        deltapack.merge(model / "base", [model / f"{number}.dpk"], out, weights=[0.5], force=True, workers=1)

    wanted = []
    for number in range(2):
        replace(number)
        wanted.append(read_file(out))
    while_replaced(replace, lambda: read_file(out), wanted, tried, "a file")


def test_a_folder_of_several_shards(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    """Who opens shard after shard by name may get some of each folder; this package sees that, and stops."""
    out = tmp_path / "out"

    def replace(number: int) -> None:
        deltapack.apply(model / "base", model / f"{number}.dpk", out, max_shard_size=100_000, force=True, workers=1)

    def pack() -> bytes:
        to = tmp_path / f"{threading.get_ident()}.dpk"
        deltapack.compress(model / "base", out, to, recipe=deltapack.Recipe(exact=True), force=True, workers=1)
        return to.read_bytes()

    wanted = []
    for number in range(2):
        replace(number)
        wanted.append(pack())
    assert len([*out.glob("*.safetensors")]) > 2
    while_replaced(replace, pack, wanted, tried, "a folder")


def test_an_open_folder_stays_the_one_that_was_opened(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    """A virtual folder over a base that is replaced gives what it gave, or an error."""
    base = tmp_path / "base"
    deltapack.apply(model / "base", model / "0.dpk", base, max_shard_size=100_000)
    deltapack.compress(base, model / "tuned-1", tmp_path / "p.dpk", recipe=deltapack.Recipe(exact=True))
    with deltapack.VirtualFolder(base, tmp_path / "p.dpk") as folder:
        wanted = {name: folder.read(name) for name in folder.names()}
    with deltapack.VirtualFolder(base, tmp_path / "p.dpk") as folder:
        deltapack.apply(model / "base", model / "2.dpk", base, max_shard_size=100_000, force=True)
        for name, content in wanted.items():
            try:
                assert folder.read(name) == content
                tried["reads of an open folder whose base was replaced: same"] += 1
            except DeltapackError:
                tried["reads of an open folder whose base was replaced: told"] += 1


@pytest.mark.slow
def test_packs_of_a_run_that_is_watched(model: Path, tmp_path: Path, tried: Counter[str]) -> None:
    """Every pack that a reader sees beside `watch` is complete."""
    run = tmp_path / "run"
    run.mkdir()
    for step in range(4):
        deltapack.apply(model / "base", model / f"{step}.dpk", run / f"checkpoint-{step + 1}")
    over = threading.Event()

    def watch() -> int:
        try:
            return len([*deltapack.watch(run, settle=0, once=True, workers=1)])
        finally:
            over.set()

    def look() -> Counter[str]:
        seen: Counter[str] = Counter()
        while not (over.is_set() and seen):
            for path in (run / "packs").glob("*.dpk"):
                deltapack.verify(path, workers=1)
                seen["packs of a watched run that readers saw, all complete"] += 1
        return seen

    steps, *seen = at_once([watch, look, look])
    for found in (steps, *seen):
        if isinstance(found, BaseException):
            raise found
    assert steps == 4
    for found in seen:
        tried.update(found)
