"""Tokenizer files: hostile ones are refused, good ones get their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import ROWS, files_of, token, tokenizer_json

from deltapack.errors import CheckpointError, DeltapackError
from deltapack.tokenizer_files import AddedToken, files_with, parse_tokenizer


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("x", "added_tokens has the wrong type"),
        ([3], r"added_tokens\[0\] has the wrong type"),
        ([{}], "id has the wrong type"),
        ([token(38, "<s>") | {"id": True}], "id has the wrong type"),
        ([token(-1, "<s>")], "is not an id"),
        ([token(1 << 40, "<s>")], "is not an id"),
        ([token(38, "<s>") | {"special": 1}], "special has the wrong type"),
        ([{"id": 38, "content": "<s>"}], "single_word has the wrong type"),
        ([token(38, "")], "is empty"),
        ([token(38, "\ud800")], "is not Unicode"),
        ([token(38, "<s>"), token(38, "<t>")], "two tokens"),
        ([token(38, "<s>"), token(39, "<s>")], "two ids"),
        ([token(38, "a")], "two ids"),
    ],
)
def test_added_tokens_that_are_none(rows: Any, what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        parse_tokenizer(json.dumps(tokenizer_json([]) | {"added_tokens": rows}).encode(), Path("pack.dpk"))


@pytest.mark.parametrize("vocab", [None, 3, {"a": "b"}, {"a": -1}, {"a": 0.5}, [["a"], []], [[3, 0.0]], "abc"])
def test_words_that_are_none(vocab: Any) -> None:
    for model in ({"vocab": vocab}, vocab):
        with pytest.raises(CheckpointError):
            parse_tokenizer(json.dumps({"model": model}).encode(), Path("pack.dpk"))


def test_words_of_a_unigram_model() -> None:
    assert parse_tokenizer(b'{"model": {"vocab": [["a", -1.5], ["b", -2]]}}', Path("x")).words == {"a": 0, "b": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 50) | st.floats() | st.sampled_from(["<s>", "<x>", "\ud800", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*token(0, ""), "vocab", "0", "a"]), inner, max_size=4),
    max_leaves=10,
)
KEYS = ("added_tokens", "model", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "vocab_size", "text_config")


@settings(deadline=None, max_examples=200)
@given(content=st.dictionaries(st.sampled_from(KEYS), JSON), name=st.sampled_from(["tokenizer.json", "config.json", "all"]))
def test_no_file_does_anything_but_be_read_or_refused(content: dict[str, Any], name: str) -> None:
    added = {40: AddedToken("<x>", False, False, False, False, True)}
    good = files_of([token(38, "<s>")], ROWS)
    files = {key: json.dumps(content).encode() if name in (key, "all") else text.encode() for key, text in good.items()}
    try:
        for data in files_with(added, added, 41, files.get, Path("pack.dpk")).values():
            assert isinstance(json.loads(data), dict)
    except DeltapackError as error:
        assert str(error)
