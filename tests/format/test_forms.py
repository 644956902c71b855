"""The forms of a base's file: line ends and the layout of JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import reference_decoder

from deltapack.format.forms import form_with, is_descriptive, joined, like, spread

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@given(VALUES)
def test_json_as_tools_write_it(value: Any) -> None:
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    lines = json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
    assert spread(compact) == lines == spread(lines)
    assert joined(lines) == compact == joined(compact)
    for data in (compact, lines):
        for form in (compact, lines, compact + b"\n", lines + b"\n"):
            assert form_with("a.json", data, sha256(form)) == form
    assert like("a.json", compact, lines) in (lines, compact) and like("a.txt", compact, lines) == compact


@given(st.binary(max_size=60) | st.text('{}[]:,"\\ \n\ra1', max_size=60).map(str.encode))
def test_forms_of_any_bytes_are_those_of_the_reference_decoder(data: bytes) -> None:
    forms = list(reference_decoder().forms_of("x.json", data))
    for form in forms:
        assert form_with("x.json", data, sha256(form)) == form
    assert form_with("x.json", data, sha256(data + b"?")) is None
    assert form_with("x.bin", data, sha256(data.replace(b"\r\n", b"\n"))) is not None


def test_what_is_nested_too_deep_has_no_spread_form() -> None:
    assert spread(b"[" * 64 + b"]" * 64) is not None
    assert spread(b"[" * 65) is None and joined(b"[ " * 65) == b"[" * 65
    assert spread(b'"' + b"\\" * 100_001) == b'"' + b"\\" * 100_001


@pytest.mark.parametrize(
    "name", ["README", "readme.MD", "a/LICENSE-2", "LICENCE.txt", "docs/x.rst", "NOTICE", "Changelog 2", "requirements.txt"]
)
def test_files_for_people(name: str) -> None:
    assert is_descriptive(name) and reference_decoder().is_descriptive(name)


@pytest.mark.parametrize(
    "name", ["config.json", "vocab.txt", "readme/config.json", "licensed.json", "md", "chat_template.jinja", "\u0130.md.x"]
)
def test_files_that_models_need(name: str) -> None:
    assert not is_descriptive(name) and not reference_decoder().is_descriptive(name)
