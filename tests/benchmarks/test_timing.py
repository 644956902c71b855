from __future__ import annotations

import pytest

from benchmarks.timing import Candidate, Rounds, Sample, interleave, ratio


def test_candidates_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    candidates = [Candidate(name, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    samples = interleave(candidates, Rounds(fast=2))
    assert order == list("ababab")
    assert [len(sample.seconds) for sample in samples.values()] == [2, 2]


def test_preparing_is_not_timed_and_comes_before_every_run() -> None:
    prepared: list[int] = []
    seconds = iter([1.0, 2.0, 4.0])
    candidate = Candidate("a", lambda: next(seconds), lambda: prepared.append(1))
    assert interleave([candidate], Rounds(fast=2))["a"].seconds == (2.0, 4.0)
    assert len(prepared) == 3


def test_slow_candidates_run_less_often_and_the_slowest_once() -> None:
    times = {"fast": 1.0, "slow": 6.0, "slowest": 100.0}
    candidates = [Candidate(name, lambda seconds=seconds: seconds) for name, seconds in times.items()]  # type: ignore[misc]
    samples = interleave(candidates, Rounds(fast=5, slow=3))
    assert {name: len(sample.seconds) for name, sample in samples.items()} == {"fast": 5, "slow": 3, "slowest": 1}


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_failure_is_a_reason_and_the_others_go_on(fails_at: int) -> None:
    runs: list[int] = []

    def fail() -> None:
        runs.append(1)
        if len(runs) > fails_at:
            raise ValueError("no\nluck")

    samples = interleave([Candidate("bad", fail), Candidate("good", lambda: 1.0)], Rounds(fast=4))
    assert samples["bad"] == Sample((), "ValueError: no luck")
    assert samples["bad"].median is None
    assert len(runs) == fails_at + 1
    assert samples["good"].seconds == (1.0,) * 4


def test_ratios_are_of_runs_of_the_same_round() -> None:
    samples = {"a": Sample((2.0, 30.0, 4.0)), "b": Sample((1.0, 10.0, 1.0)), "slow": Sample((4.0,)), "none": Sample(reason="why")}
    assert ratio(samples, "a", "b") == 3.0  # the ratio of the medians would be 4
    assert ratio(samples, "slow", "a") == 2.0
    assert ratio(samples, "none", "a") is None
    assert ratio(samples, "a", "unknown") is None
