"""Bits that reach a size, by the sizes of what was tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from deltapack.errors import RecipeError
from deltapack.packing.allocation import Rates
from deltapack.packing.budget import Budget
from deltapack.packing.fitting import Attempt, Fitting
from deltapack.packing.targeting import MOST_TRIES, Tried, best_of, next_bits, reached


def tries_until(target: int, size_of: Callable[[float], int], first: float) -> list[Tried]:
    tried = [Tried(first, size_of(first))]
    while not reached(tried[-1].size, target) and len(tried) < MOST_TRIES:
        bits = next_bits(tried, target)
        tried.append(Tried(bits, size_of(bits)))
    return tried


@pytest.mark.parametrize("target", [2_000, 50_000, 10_000_000])
@pytest.mark.parametrize(
    "size_of",
    [
        lambda bits: int(700 + bits / 8),
        lambda bits: int(1_500 + bits / 8),
        lambda bits: int(900 + 1.12 * bits / 8),
        lambda bits: int(900 + 0.8 * bits / 8),
        lambda bits: int(900 + (bits / 8) ** 0.97),
        lambda bits: int(900 + 60 * (bits // 480)),  # sizes jump
        lambda bits: int(900 + 0.1 * bits),
        lambda bits: int(900 + 0.01 * bits),  # much of what bits are asked for takes none
    ],
)
def test_a_size_is_reached_in_few_tries(target: int, size_of: Callable[[float], int]) -> None:
    tried = tries_until(target, size_of, 8 * 0.99 * target)
    assert reached(tried[-1].size, target)
    assert len(tried) <= 3


def test_a_size_is_reached_where_two_tries_gave_the_same() -> None:
    tried = tries_until(2_000, lambda bits: int(900 + 30 * (bits // 20_000)), 3_000.0)
    assert tried[0].size == tried[1].size == 900 and reached(tried[-1].size, 2_000) and len(tried) <= 5
    flat = [Tried(1_000.0, 900), Tried(2_000.0, 900)]
    assert 2_000 < next_bits(flat, 1_000) < 10_000
    assert next_bits([Tried(1_000.0, 900), Tried(2_000.0, 901)], 100_000) == 64_000  # one byte more tells little


def test_bits_stay_between_what_was_too_small_and_too_large() -> None:
    tried = [Tried(1000.0, 900), Tried(2000.0, 1100), Tried(1900.0, 1099)]
    assert 1000 < next_bits(tried, 1000) < 1900
    assert next_bits([Tried(10.0, 10_000)], 100) == 0.0


def test_promises() -> None:
    assert [reached(size, 1000) for size in (979, 980, 1005, 1006)] == [False, True, True, False]
    tried = [Tried(1.0, 900), Tried(3.0, 1100), Tried(2.0, 950)]
    assert best_of(tried, 1000) == Tried(2.0, 950) and best_of(tried, 100) is None


def test_tries_end_with_the_best_of_them() -> None:
    """Where no bits give the same size twice: the plans that gave the best are taken again, not bits."""
    nothing: Any = SimpleNamespace(spent=0.0)
    fitting = Fitting(SimpleNamespace(), Budget(size=1000), 1, (), {}, 1000)  # type: ignore[arg-type]
    numbers = itertools.count(1)
    made = [Attempt((), nothing, 0.0, 0.0)]
    sizes = {id(made[0]): 900}

    def another(self: Fitting, bits: float, before: Attempt | None) -> Attempt:
        made.append(Attempt((), nothing, bits, 0.0))
        sizes[id(made[-1])] = 900 + 13 * next(numbers) % 60
        return made[-1]

    with mock.patch.object(Fitting, "_of_bits", another):
        attempt: Attempt | None = made[0]
        while attempt is not None:
            last, attempt = attempt, fitting.after(attempt, sizes[id(attempt)])
    assert len(made) == MOST_TRIES and len(fitting.tried) <= MOST_TRIES + 1
    assert sizes[id(last)] == max(sizes.values()) and len(fitting.notes) == 1


def test_what_is_told_of_a_size_that_no_pack_has_is_the_least_of_those_tried() -> None:
    inputs: Any = SimpleNamespace(finetuned=SimpleNamespace(path=Path("tuned")))
    fitting = Fitting(inputs, Budget(size=1000), 1, (), {}, 1000, [Tried(9.0, 1300), Tried(5.0, 1100)], beside=1040)
    with pytest.raises(RecipeError, match=r"at least 1,100 bytes.*About 1,040 bytes go to what a budget cannot make smaller"):
        fitting.after(Attempt((), Rates(2e-4, 2e-4), 3.0, 0.0), 1200)
