"""Which pack follows which: order, gaps, forks, circles."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltapack.composing.chain import in_order, open_links
from deltapack.errors import BaseMismatchError, DeltapackError, LimitError, RecipeError
from deltapack.format.reader import PackReader


def pack(base: str, result: str, name: str = "", config: str = "", *, exact: bool = True) -> PackReader:
    """As much of a pack as its place in a chain depends on."""
    index = SimpleNamespace(
        base_fingerprint=base * 64,
        result_fingerprint=result * 64,
        files=(SimpleNamespace(name="config.json", sha256=config * 64),) if config else None,
        containers=(),
        is_exact=exact,
    )
    path = Path(f"{name or base + result}.dpk")
    return cast(PackReader, SimpleNamespace(path=path, index=index, pack_id=str(path)))


def names(packs: list[PackReader]) -> list[str]:
    return [pack.path.stem for pack in packs]


def test_the_order_given_counts() -> None:
    assert in_order([]) == []
    assert names(in_order([pack("a", "b"), pack("b", "c"), pack("c", "d")])) == ["ab", "bc", "cd"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_another_order_is_put_right(order: tuple[int, ...]) -> None:
    packs = [pack("a", "b"), pack("b", "c"), pack("c", "d"), pack("d", "e")]
    assert names(in_order([packs[number] for number in order])) == ["ab", "bc", "cd", "de"]


@given(st.permutations(("ab", "bb", "bc", "cc", "aa")))
def test_packs_that_change_nothing_stand_where_they_belong(order: list[str]) -> None:
    chain = in_order([pack(*name) for name in order])
    assert all(one.index.result_fingerprint == two.index.base_fingerprint for one, two in itertools.pairwise(chain))
    assert sorted(names(chain)) == sorted(order)


def test_only_packs_that_change_nothing() -> None:
    assert names(in_order([pack("a", "a", "x"), pack("a", "a", "y")])) == ["x", "y"]


def test_packs_that_change_files_alone_are_not_put_in_an_order_that_nothing_says() -> None:
    packs = [pack("a", "b"), pack("b", "b", "x", "1"), pack("b", "b", "y", "2")]
    assert names(in_order(packs)) == ["ab", "x", "y"]
    assert names(in_order([packs[0], packs[2], packs[1]])) == ["ab", "y", "x"]
    with pytest.raises(RecipeError, match=r"y\.dpk: two packs change files alone.*found x\.dpk.*in the order in which they were made"):
        in_order([packs[1], packs[2], packs[0]])
    same = pack("b", "b", "z", "1")
    assert names(in_order([packs[1], same, packs[0]])) == ["ab", "x", "z"]


REFUSED: dict[str, tuple[list[tuple[str, ...]], type[DeltapackError], str]] = {
    "a gap": (
        [("a", "b"), ("c", "d")],
        BaseMismatchError,
        r"cd\.dpk: cd\.dpk follows the checkpoint with fingerprint c{16}; ab\.dpk gives b{16}; missing: a pack from b{16} to c{16}\.",
    ),
    "a gap, out of order": (
        [("b", "c"), ("a", "b"), ("d", "e")],
        BaseMismatchError,
        r"bc\.dpk gives c{16}; missing: a pack from c{16} to d{16}",
    ),
    "a gap before one that changes nothing": ([("a", "b"), ("c", "c")], BaseMismatchError, r"cc\.dpk follows .*ab\.dpk gives b{16}"),
    "siblings": ([("a", "b"), ("a", "c")], BaseMismatchError, r"ac\.dpk: two packs follow the same checkpoint.*`deltapack log`"),
    "a fork": ([("a", "b"), ("b", "c"), ("b", "d")], BaseMismatchError, r"bd\.dpk: two packs follow"),
    "twice": ([("a", "b", "x"), ("a", "b", "x")], RecipeError, r"x\.dpk: a pack of the chain is given twice: found x\.dpk"),
    "back, in order": (
        [("a", "b"), ("b", "c"), ("c", "a")],
        RecipeError,
        r"ca\.dpk: the chain comes back to where it was: found fingerprint a{16}\. Leave out .* from ab\.dpk to ca\.dpk",
    ),
    "back to the middle": ([("a", "b"), ("b", "c"), ("c", "b")], RecipeError, r"from bc\.dpk to cb\.dpk"),
    "back, past one that changes nothing": ([("a", "b"), ("b", "b"), ("b", "c"), ("c", "b")], RecipeError, r"from bc\.dpk to cb\.dpk"),
    "a circle, out of order": ([("a", "b"), ("c", "a"), ("b", "c")], RecipeError, "circle"),
    "a circle beside a chain": ([("a", "b"), ("c", "d"), ("d", "c")], RecipeError, r"cd\.dpk: packs follow one another in a circle"),
    "a chain into a circle": ([("b", "c"), ("a", "b"), ("c", "b", "y")], RecipeError, r"y\.dpk: the chain comes back"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_chain_is_refused(case: str) -> None:
    packs, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as error:
        in_order([pack(*names) for names in packs])
    assert type(error.value) is kind


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")), max_size=7))
def test_any_packs_are_put_in_order_or_refused(pairs: list[tuple[str, str]]) -> None:
    packs = [pack(*pair, name=f"{number}") for number, pair in enumerate(pairs)]
    try:
        chain = in_order(packs)
    except (BaseMismatchError, RecipeError) as error:
        assert re.search("follow|circle|comes back", str(error))
        return
    assert sorted(map(id, chain)) == sorted(map(id, packs))
    assert all(one.index.result_fingerprint == two.index.base_fingerprint for one, two in itertools.pairwise(chain))


@pytest.mark.parametrize(
    ("one", "two", "hint"),
    [
        (pack("a", "b", "step-00000001"), pack("a", "c", "step-00000003"), r"`deltapack apply BASE DIR --step N` takes"),
        (pack("a", "b"), pack("a", "c", "step-00000003"), "Name the packs of one chain: `deltapack log` shows"),
        (pack("a", "b"), pack("a", "c", exact=False), "`deltapack merge` adds them"),
    ],
)
def test_only_lossy_packs_of_one_base_are_there_to_be_merged(one: PackReader, two: PackReader, hint: str) -> None:
    with pytest.raises(BaseMismatchError, match=hint) as caught:
        in_order([one, two])
    assert ("merge" in str(caught.value)) == ("merge" in hint)


def test_a_chain_is_not_endless() -> None:
    message = r"too many packs in a chain: expected at most 1,000, found 1,001\. `deltapack squash`"
    with pytest.raises(LimitError, match=message), open_links([Path("x.dpk")] * 1001):
        pass
