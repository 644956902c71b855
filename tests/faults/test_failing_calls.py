"""Each call of the file system fails once, or the disk is full from there on: the output is as it was or complete, and the error ours.

A usual run draws some of the calls of each command; `DELTAPACK_FAULTS=all` lets each of them fail in every way.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from support.fault_runs import CASES, FACTOR, Bench, drawn
from support.file_layer import FAULTS, Fault

_EACH, _HEAVY = 12, 4
"""Faults that a usual run tries of a command."""


def faults_of(calls: tuple[str, ...]) -> list[Fault]:
    """Everything that may go wrong in a run that makes these calls."""
    found = [Fault(number, kind) for number, call in enumerate(calls) for kind, which in FAULTS.items() if call in which]
    return found + [Fault(fault.number, fault.kind, True) for fault in found if fault.kind == "ENOSPC"]


@pytest.mark.parametrize(("name", "old"), CASES)
def test_failing_calls(name: str, old: bool, runs: Bench, tried: Counter[str]) -> None:
    case, rng = runs.case(name, old), random.Random(f"{name} {old}")
    wrong = []
    for fault in drawn(faults_of(case.calls), _HEAVY if case.verb.heavy else _EACH, rng):
        outcome = runs.run(case, fault)
        tried["calls failed"] += len(outcome.failed)
        tried["runs with a call that failed"] += bool(outcome.failed)
        found = runs.wrong(case, outcome)
        if found is None and fault.kind == "short" and outcome.code != 0:
            found = "takes a short transfer for an error"
        if found is not None:
            call = case.calls[fault.number] if fault.number < len(case.calls) else "?"
            wrong.append(f"{fault} ({call}): {found}\n{outcome.said[-2000:]}\n{outcome.bare}")
    assert not wrong, f"{len(wrong)} of them:\n" + "\n".join(wrong[:3])


def test_what_is_drawn() -> None:
    """A usual run lets every kind of fault happen, and all of them where that is asked for."""
    calls = ("stat", "open", "read", "create", "write", "fsync", "close", "rename")
    assert {fault.kind for fault in faults_of(calls)} == set(FAULTS)
    found = faults_of(calls)
    assert len(drawn(found, 5, random.Random(0))) == (5 if FACTOR == 1 else min(len(found), round(5 * FACTOR)))
