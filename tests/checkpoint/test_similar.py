"""The names most like a given one."""

from __future__ import annotations

import difflib

import pytest
from support.layouts import infos, llama

from deltapack.checkpoint import TensorInfo, nearest_names
from deltapack.dtypes import BY_NAME


def info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, BY_NAME["bf16"], shape, "x")


def nearest(name: str, shape: tuple[int, ...], among: dict[str, tuple[int, ...]], count: int = 3) -> tuple[str, ...]:
    return nearest_names(name, info(name, shape), infos(among), count)


def test_the_most_similar_comes_first() -> None:
    found = nearest("model.layers.1.attention.q_proj.weight", (16, 16), llama())
    assert found[0] == "model.layers.1.self_attn.q_proj.weight"
    assert len(found) == 3


def test_only_fitting_shapes_are_named() -> None:
    assert nearest("a.w", (4, 2), {"a.w1": (4, 3), "a.w2": (4,), "zzz": (9, 2)}) == ("zzz",)
    assert nearest("a.w", (4, 2), {"a.w1": (4, 3)}) == ()


def test_codes_are_not_offered_for_floats() -> None:
    assert nearest_names("a", info("a", (2, 2)), infos({"a.q": (2, 2)}, "i32")) == ()


@pytest.mark.parametrize(("count", "expected"), [(0, ()), (1, ("ab",)), (9, ("ab", "abc"))])
def test_so_many_at_most(count: int, expected: tuple[str, ...]) -> None:
    assert nearest("ab", (2,), {"abc": (2,), "ab": (2,)}, count) == expected


def test_ties_are_in_order_of_names() -> None:
    assert nearest("a", (2,), {name: (2,) for name in ("d", "b", "c")}) == ("b", "c", "d")


def test_many_and_long_names_are_compared_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    set_seq1 = difflib.SequenceMatcher.set_seq1

    def counted(matcher: difflib.SequenceMatcher[str], name: str) -> None:
        compared.append(len(name))
        set_seq1(matcher, name)

    monkeypatch.setattr(difflib.SequenceMatcher, "set_seq1", counted)
    among: dict[str, tuple[int, ...]] = {f"{'a.' * 2000}{number}": (2,) for number in range(2000)}
    assert len(nearest("a." * 3000, (2,), among)) == 3
    assert 3 <= len(compared) <= 66  # making a matcher sets an empty one
    assert max(compared) <= 200
