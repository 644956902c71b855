"""Killed or interrupted at any moment, before any call of the file system: the old output or the new, and nothing in the next run's way.

`DELTAPACK_FAULTS=20` sends twenty times as many signals.
"""

from __future__ import annotations

import random
import signal
from collections import Counter

import pytest
from support.fault_runs import CASES, Bench, Case, drawn
from support.file_layer import Fault
from support.nursery import Outcome
from support.verbs import VERBS, is_complete, is_right

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
_AT_CALLS, _AT_TIMES = 6, 2
"""Signals that a usual run sends a command before a call that is drawn, and at a moment that is."""
WRITES = [(name, old) for name, old in CASES if VERBS[name].out is not None]


@pytest.mark.parametrize(("name", "old"), WRITES)
def test_signals(name: str, old: bool, runs: Bench, tried: Counter[str]) -> None:
    case, rng = runs.case(name, old), random.Random(f"{name} {old}")
    at_calls = [(sign, number) for number in range(len(case.calls)) for sign in SIGNALS]
    for count, (sign, number) in enumerate(drawn(at_calls, 2 if case.verb.heavy else _AT_CALLS, rng)):
        outcome = runs.run(case, Fault(number, sign))
        check(runs, case, sign, outcome, again=count % 3 == 0)
        tried[f"{sign} sent"] += 1
    for moment in drawn(list(range(1000)), 1 if case.verb.heavy else _AT_TIMES, rng):
        sign = rng.choice(SIGNALS)
        outcome = runs.run(case, kill=(getattr(signal, sign), case.seconds * 1.2 * moment / 1000))
        check(runs, case, sign, outcome, again=True)
        tried[f"{sign} sent"] += 1


def check(runs: Bench, case: Case, sign: str, outcome: Outcome, *, again: bool) -> None:
    """What a signal may leave, and that the next run comes to its end."""
    now, number = runs.content(case), getattr(signal, sign)
    assert outcome.code in (0, 130, -number), outcome.said
    assert "Traceback" not in outcome.said, outcome.said
    assert is_right(case.verb, now, case.before, case.complete), (sign, outcome.said)
    assert outcome.code != 0 or is_complete(case.verb, now, case.complete)
    if sign != "SIGKILL":
        assert not runs.litter(case), (sign, runs.litter(case))
    if again:
        outcome = runs.again(case)
        assert is_complete(case.verb, runs.content(case), case.complete), outcome.said
        assert outcome.code == 0 or (not case.verb.force and now == case.complete), outcome.said
        assert not runs.litter(case), "the next run removes what is left"
