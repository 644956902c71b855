"""Matching names: maps, equal names, ties, one prefix."""

from __future__ import annotations

import pytest

from deltapack.checkpoint import TensorInfo, match_names
from deltapack.dtypes import BY_NAME
from deltapack.errors import RecipeError


def infos(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    return {name.replace("__", "."): TensorInfo(name.replace("__", "."), BY_NAME["f32"], shape, "x") for name, shape in shapes.items()}


def test_equal_names_match_whatever_their_shape() -> None:
    match = match_names(infos(a=(2,), b=(3,)), infos(a=(4, 5), c=(1,)))
    assert (match.base_of, match.only_finetuned, match.only_base, match.notes) == ({"a": "a"}, ("c",), ("b",), ())


@pytest.mark.parametrize("side", ["fine-tune", "base"])
def test_one_prefix_on_one_side_is_removed_and_said(side: str) -> None:
    bare, prefixed = infos(enc__w=(3, 2), enc__b=(3,)), infos(bert__enc__w=(3, 2), bert__enc__b=(3,), cls__b=(9,))
    base, finetuned = (bare, prefixed) if side == "fine-tune" else (prefixed, bare)
    match = match_names(base, finetuned)
    pairs = {"bert.enc.w": "enc.w", "bert.enc.b": "enc.b"}
    assert match.base_of == (pairs if side == "fine-tune" else {short: long for long, short in pairs.items()})
    assert any("'bert.'" in note and side in note for note in match.notes)
    assert match.only_finetuned + match.only_base == ("cls.b",)


def test_a_grown_vocabulary_still_matches_by_prefix() -> None:
    assert match_names(infos(e__w=(10, 4)), infos(m__e__w=(12, 4))).base_of == {"m.e.w": "e.w"}


@pytest.mark.parametrize(("base", "finetuned"), [((10, 4), (10, 5)), ((10,), (12,)), ((4, 4), (4,))])
def test_a_prefix_needs_fitting_shapes(base: tuple[int, ...], finetuned: tuple[int, ...]) -> None:
    assert match_names(infos(e__w=base), infos(m__e__w=finetuned)).base_of == {}


def test_two_possible_prefixes_match_nothing_and_say_so() -> None:
    match = match_names(infos(w=(2, 2)), infos(a__w=(2, 2), b__w=(2, 2)))
    assert match.base_of == {}
    assert any("--map" in note for note in match.notes)


def test_equal_names_come_before_prefixes() -> None:
    match = match_names(infos(w=(2,), x__w=(2,)), infos(x__w=(2,)))
    assert match.base_of == {"x.w": "x.w"}


def test_a_map_comes_before_equal_names() -> None:
    match = match_names(infos(a=(2,), b=(2,)), infos(a=(2,)), [("a", "b")])
    assert (match.base_of, match.only_base) == ({"a": "b"}, ("a",))


def test_the_first_map_that_matches_counts() -> None:
    base, finetuned = infos(x=(1,), y=(1,)), infos(m__x=(1,), n__y=(1,))
    match = match_names(base, finetuned, [(r"m\.(.*)", r"\1"), (r".\.(y)", r"\1")])
    assert match.base_of == {"m.x": "x", "n.y": "y"}


@pytest.mark.parametrize(
    "maps",
    [
        [(r".*", "a")],
        [(r"b", "a")],
        [(r"(", "a")],
        [(r"a", r"\1")],
        [(r"a", r"\g<x>")],
        [(r"nothing", "a")],
        [(r"a", "not in the base")],
    ],
)
def test_a_wrong_map_is_an_error(maps: list[tuple[str, str]]) -> None:
    with pytest.raises(RecipeError):
        match_names(infos(a=(2,)), infos(a=(2,), b=(2,)), maps)


def test_ties_that_kept_different_names_match() -> None:
    embed, head = infos(embed=(4, 2)), infos(head=(4, 2))
    assert match_names(embed, head, base_aliases={"head": "embed"}).base_of == {"head": "embed"}
    assert match_names(embed, head, finetuned_aliases={"embed": "head"}).base_of == {"head": "embed"}


def test_a_tied_head_that_was_untied_is_new() -> None:
    match = match_names(infos(embed=(4, 2)), infos(embed=(4, 2), head=(4, 2)), base_aliases={"head": "embed"})
    assert (match.base_of, match.only_finetuned) == ({"embed": "embed"}, ("head",))
