"""Regular expressions of users and of files end, whatever they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltapack import patterns
from deltapack.errors import RecipeError
from deltapack.patterns import LONGEST, check_pattern, check_patterns, work

NAMES = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(80) for part in "qkvo"]
ENDLESS = (
    ("(a+)+$", "search", "a" * 60 + "!"),
    ("(a|aa)+$", "fullmatch", "a" * 60 + "!"),
    ("(a|a)" * 40 + "b", "fullmatch", "a" * 60),
    ("(?x) (a+) + $", "search", "a" * 60 + "!"),
    ("(a+)(?#)+$", "search", "a" * 60 + "!"),
    (".*.*.*.*.*.*b", "fullmatch", "a" * 512),
    (r"(.*)(.*)(.*)(.*)\4\3\2\1b", "fullmatch", "a" * 512),
)


def lengths(*names: str) -> list[tuple[int, int]]:
    return [(len(name), 1) for name in names]


@pytest.mark.parametrize(("pattern", "how", "name"), ENDLESS)
def test_what_would_not_end_is_known(pattern: str, how: patterns.How, name: str) -> None:
    assert work(pattern, how, lengths(name)) > 1e10


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        (".*lm_head.*", "fullmatch"),
        (r"model\.layers\.(\d+)\..*", "fullmatch"),
        (r"\.(q|k|v|o|gate|up|down)_proj\.weight$", "search"),
        ("^(?:wte|wpe)", "search"),
        ("[+*]{3}", "search"),
    ],
)
def test_what_people_write_runs_at_once(pattern: str, how: patterns.How, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_try_apart", lambda *_: pytest.fail("a process for this"))
    check_patterns([(pattern, how), (None, "search")], NAMES)


def test_an_endless_one_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes too long: expected at most .* seconds for 321 names, found '\(a\+\)\+\$'") as caught:
        check_patterns([("layers", "search"), ("(a+)+$", "search")], [*NAMES, "a" * 60 + "!"], tmp_path / "recipe.yaml")
    assert caught.value.path == tmp_path / "recipe.yaml"


def test_a_strange_one_that_ends_is_let_through() -> None:
    check_patterns([(r"(\w+\.)+weight", "fullmatch"), (".*.*.*.*x", "search")], ["a.b.weight", "w" * 30])


def test_options_that_make_classes_slow_are_tried_apart() -> None:
    with pytest.raises(RecipeError, match="takes too long"):
        check_pattern("(?i)" + "[\0-\U0010ffff]" * 800)
    check_pattern("(?i)[a-z]+")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "is wrong: missing"),
        (5, "is not a text"),
        ("a" * (LONGEST + 1), f"is too long: expected at most {LONGEST:,} characters, found {LONGEST + 1:,}"),
        ("(" * 2000 + ")" * 2000, "is wrong"),
        ("a{99999999999}", "is wrong"),
        ("\ud800", "is wrong"),
    ],
)
def test_what_is_no_expression(pattern: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check_pattern(pattern)


def test_without_a_second_interpreter_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RecipeError, match="cannot be tried in a process of its own"):
        check_patterns([("(a+)+$", "search")], NAMES)


@settings(max_examples=150, deadline=None)
@given(st.text("ab|?*+().{}2\\[]", max_size=9), st.integers(1, 14))
def test_the_bound_holds_for_what_is_cheap(pattern: str, length: int) -> None:
    """Whatever is called cheap ends: a miss of the estimate would hang here."""
    try:
        check_pattern(pattern)
    except RecipeError:
        return
    if work(pattern, "search", [(length, 1)]) < 1e6:
        re.search(pattern, "a" * length + "!")
