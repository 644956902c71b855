"""Tokenizer files: hostile ones are refused, good ones get their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import examples
from support.vocabularies import ROWS, files_of, token, tokenizer_json

from deltapack.composing.tokenizer_files import AddedToken, files_with, parse_tokenizer
from deltapack.errors import CheckpointError, DeltapackError


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


@examples(200)
@given(content=st.dictionaries(st.sampled_from(KEYS), JSON), name=st.sampled_from(["tokenizer.json", "config.json", "all"]))
def test_no_file_does_anything_but_be_read_or_refused(content: dict[str, Any], name: str) -> None:
    added = {40: AddedToken("<x>", False, False, False, False, True)}
    good = files_of([token(38, "<s>")], ROWS)
    files = {key: json.dumps(content).encode() if name in (key, "all") else text.encode() for key, text in good.items()}
    try:
        for data in files_with(added, added, 41, files.get, Path("pack.dpk")).values():
            assert isinstance(json.loads(data), dict)
    except DeltapackError as error:
        assert error.path is not None and Path(error.path).parent == Path("pack.dpk")


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
def test_lists_of_special_tokens(name: str) -> None:
    """Whichever transformers wrote the files: special tokens that they lack are listed once; plain ones are not."""
    contents = ("<s>", "<x>", "plain")
    added = {38 + key: AddedToken(content, False, False, False, False, content != "plain") for key, content in enumerate(contents)}
    listed = {name: ["<own>", token(41, "<x>")]}
    for new in ({39, 40}, {38, 39, 40}):
        changed = {key: added[key] for key in new}
        files = {"tokenizer.json": tokenizer_json([]), "tokenizer_config.json": listed, "special_tokens_map.json": {"eos_token": "</s>"}}
        found = files_with(added, changed, None, {key: json.dumps(value).encode() for key, value in files.items()}.get, Path("x"))
        assert found.keys() == {"tokenizer.json"} | ({"tokenizer_config.json"} if 38 in new else set())
        if 38 in new:
            assert json.loads(found["tokenizer_config.json"]) == {name: [*listed[name], "<s>"]}


def test_files_that_need_no_change_stay() -> None:
    files = {key: text.encode() for key, text in files_of([token(38, "<s>")], ROWS).items()}
    token_of = AddedToken("<s>", False, False, False, False, True)
    assert files_with({38: token_of}, {}, ROWS, files.get, Path("x")) == {}
    assert files_with({38: token_of}, {38: token_of}, None, files.get, Path("x")) == {}
    assert files_with({38: token_of}, {38: token_of}, ROWS + 1, files.get, Path("x")).keys() == {"config.json"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"vocab_size": 3}, {"vocab_size": 7}),
        ({}, {"vocab_size": 7}),
        ({"text_config": {}}, {"text_config": {"vocab_size": 7}}),
        ({"text_config": {"vocab_size": 3}}, {"text_config": {"vocab_size": 7}}),
        ({"text_config": {}, "vocab_size": 3}, {"text_config": {}, "vocab_size": 7}),
        ({"text_config": {"vocab_size": 3}, "vocab_size": 3}, {"text_config": {"vocab_size": 7}, "vocab_size": 7}),
        ({"text_config": 3}, {"text_config": 3, "vocab_size": 7}),
    ],
)
def test_the_size_of_the_vocabulary(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = files_with({}, {}, 7, {"config.json": json.dumps(before).encode()}.get, Path("x"))
    assert json.loads(found["config.json"]) == after
