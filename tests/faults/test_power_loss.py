"""The power goes at any moment: what lies under the final name is the old output or the complete new one, and the next run works."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import pytest
from support.crash_states import Event, History, flat
from support.fault_runs import CASES, Bench, drawn
from support.verbs import VERBS, content, is_complete, is_right

_AGAIN, _HEAVY = 2, 1
"""States in which a usual run has the command run again."""
WRITES = [(name, old) for name, old in CASES if VERBS[name].out is not None]


@pytest.mark.parametrize(("name", "old"), WRITES)
def test_power_loss(name: str, old: bool, runs: Bench, tried: Counter[str], tmp_path: Path) -> None:
    case, rng = runs.case(name, old), random.Random(f"{name} {old}")
    assert runs.run(case, record=tmp_path / "history").code == 0
    history: History = pickle.loads((tmp_path / "history").read_bytes())
    # Nothing was written around the layer: what it was told of makes what is there.
    assert history.finished() == flat(runs.work)
    states: dict[int, dict[str, bytes]] = {}
    for files in history.crashes(rng):
        now = content(case.verb, files)
        assert is_right(case.verb, now, case.before, case.complete), {path: len(data) for path, data in (now or {}).items()}
        tried["states of a disk after the power went"] += 1
        states[hash(tuple(sorted(files.items())))] = files
    for number in drawn(sorted(states), _HEAVY if case.verb.heavy else _AGAIN, rng):
        runs.put(case, states[number])
        there = runs.content(case)
        outcome = runs.again(case)
        tried["runs after the power went"] += 1
        assert is_complete(case.verb, runs.content(case), case.complete), outcome.said
        assert outcome.code == 0 or (not case.verb.force and there == case.complete), outcome.said


def write(node: int, data: bytes) -> Event:
    return Event("write", node, 0, data)


NEW, SYNC, RENAME = Event("file", 2, entries=((0, "new", 2),)), Event("sync", 2), Event("move", entries=((0, "new", None), (0, "out", 2)))
FOLDER = Event("sync", 0)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([NEW, write(2, b"1234"), SYNC, RENAME, FOLDER], {b"old!", b"1234"}),
        ([NEW, write(2, b"1234"), RENAME, FOLDER], {b"old!", b"1234", b"12", b"\0\0\0\0", b""}),
        ([NEW, write(2, b"12"), SYNC, Event("write", 2, 2, b"34"), RENAME], {b"old!", b"12", b"1234", b"123", b"12\0\0"}),
        ([Event("size", 1, 0), write(1, b"1234"), Event("sync", 1)], {b"old!", b"", b"1234", b"12", b"\0\0\0\0"}),
    ],
    ids=["right", "no sync before the rename", "written after the sync", "in place"],
)
def test_the_model_finds_what_is_wrong(events: list[Event], found: set[bytes]) -> None:
    """Of `out`, which holds `old!`: what may be there."""
    history = History({0: {"out": 1}, 1: bytearray(b"old!")}, events)
    seen = {files["out"] for files in history.crashes(random.Random(0))}
    assert seen >= found and (events[2:3] != [SYNC] or len(events) < 5 or seen == found)


def test_the_old_one_is_gone_where_it_is_removed_first() -> None:
    events = [NEW, write(2, b"1234"), SYNC, Event("leave", entries=((0, "out", None),)), RENAME, FOLDER]
    seen = [files.get("out") for files in History({0: {"out": 1}, 1: bytearray(b"old!")}, events).crashes(random.Random(0))]
    assert None in seen
