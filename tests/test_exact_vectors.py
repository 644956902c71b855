"""Vectors of exact chunks against every decoder: spec/exact_decoder.py, and both backends of the package."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.backends import load
from test_vectors import ROOT, VECTORS, reference

from deltapack import kernels
from deltapack.codecs.exact import decode_exact_chunk, encode_exact_chunk
from deltapack.codecs.exact_sharing import Sample, learn_tables
from deltapack.codecs.exact_tables import SharedTables
from deltapack.dtypes import BY_NAME
from deltapack.errors import FormatError
from deltapack.kernels.exact_numbers import numbers_of

SOURCE, PAGE = ROOT / "spec" / "exact_decoder.py", ROOT / "spec" / "codecs" / "exact.md"
DOCUMENT: dict[str, Any] = json.loads((VECTORS / "exact.json").read_text("utf-8"))
VALID, INVALID = DOCUMENT["valid"], DOCUMENT["invalid"]
Decode = Callable[[dict[str, Any]], bytes]


def data_of(runs: list[list[Any]] | None) -> bytes | None:
    return None if runs is None else b"".join(bytes.fromhex(spelt) * repeat for spelt, repeat in runs)


def load_decoder() -> ModuleType:
    """spec/exact_decoder.py, which imports its neighbour by name."""
    spec = importlib.util.spec_from_file_location("exact_decoder", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"reference_decoder": reference}):
        spec.loader.exec_module(module)
    return module


DECODER = load_decoder()


def tables_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(table) for table in vector["tables"]]


def by_spec(vector: dict[str, Any], decoder: ModuleType = DECODER) -> bytes:
    chunk, base = bytes.fromhex(vector["chunk"]), data_of(vector["base"])
    found: bytes = decoder.decode_exact(chunk, base, vector["dtype"], vector["itemsize"], vector["length"], tables_of(vector))
    return found


def by_package(vector: dict[str, Any], backend: str) -> bytes:
    dtype, base = BY_NAME[vector["dtype"]], data_of(vector["base"])
    elements = None if base is None else np.frombuffer(base, dtype.storage)
    with mock.patch.object(kernels, "active", return_value=load(backend)):
        tables = SharedTables(tuple(tables_of(vector)))
        return decode_exact_chunk(bytes.fromhex(vector["chunk"]), elements, dtype, vector["length"], tables).tobytes()


DECODERS: dict[str, Decode] = {
    "spec": by_spec,
    "cpu": lambda vector: by_package(vector, "cpu"),
    "reference": lambda vector: by_package(vector, "reference"),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("decoder", DECODERS)
def test_valid_chunk_gives_its_elements(decoder: str, name: str) -> None:
    assert DECODERS[decoder](VALID[name]) == data_of(VALID[name]["result"])


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("decoder", DECODERS)
def test_invalid_chunk_breaks_its_rule(decoder: str, name: str) -> None:
    with pytest.raises((FormatError, reference.Invalid)) as caught:
        DECODERS[decoder](INVALID[name])
    assert caught.value.rule == INVALID[name]["rule"]


@pytest.mark.parametrize("name", VALID)
def test_what_the_package_writes_is_read_by_the_specification(name: str) -> None:
    """The elements of each vector, with and without their base, as the package's encoder writes them."""
    vector = VALID[name]
    dtype, result, base = BY_NAME[vector["dtype"]], data_of(vector["result"]), data_of(vector["base"])
    assert result is not None
    tuned = np.frombuffer(result, dtype.storage)
    for own in (base, None):
        given = None if own is None else np.frombuffer(own, dtype.storage)
        chunk = encode_exact_chunk(given, tuned, dtype)
        assert DECODER.decode_exact(chunk, own, dtype.name, dtype.itemsize, len(tuned), []) == result


@pytest.mark.parametrize("name", ["bf16", "f32", "f8_e4m3fn", "i8"])
def test_tables_that_the_package_shares_are_read_by_the_specification(name: str) -> None:
    dtype, rng = BY_NAME[name], np.random.default_rng(0)
    samples = []
    for length in range(50, 900, 50):
        base = rng.integers(40, 60, length * dtype.itemsize, np.uint8)
        tuned = np.where(rng.random(len(base)) < 0.03, base + 1, base).astype(np.uint8)
        samples.append(Sample(base.view(dtype.storage), tuned.view(dtype.storage), dtype))
    blobs, shared = learn_tables(samples), 0
    for sample in samples:
        chunk = encode_exact_chunk(sample.base, sample.tuned, dtype, SharedTables(blobs))
        shared += chunk[0] == 4
        found = DECODER.decode_exact(chunk, sample.base.tobytes(), name, dtype.itemsize, len(sample.base), list(blobs))
        assert found == sample.tuned.tobytes()
    assert shared > 10


Fault = tuple[str, int]


@lru_cache
def collecting_decoder() -> tuple[ModuleType, list[Fault]]:
    """The decoder, whose checks add to the list and let the chunk pass."""
    module, found = load_decoder(), list[Fault]()

    def need(condition: object, rule: str, message: str) -> None:
        if not condition:
            found.append((rule, sys._getframe(1).f_lineno))
            if len(found) > 100:
                raise RuntimeError(message)

    module.__dict__["need"] = need
    return module, found


@lru_cache
def faults_of(name: str) -> tuple[Fault, ...]:
    """Every check that a chunk fails, as far as it can be read."""
    decoder, found = collecting_decoder()
    found.clear()
    try:
        by_spec(INVALID[name], decoder)
    except reference.Invalid as error:
        own = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(SOURCE)]
        found.append((error.rule, own[-1]))
    except Exception as error:
        assert found, (name, error)  # what the failed check keeps from happening
    return tuple(dict.fromkeys(found))


TWICE = {
    "cut": "raw bits that are missing are not there to be read",
    "form-*": "an unknown form says nothing of the bytes behind it",
    "plane-mode-5": "an unknown mode says nothing of the bytes behind it",
    "plane-frame-too-long": "no frame of so few bytes is so long: also R10",
    "table-none": "a table of no bytes is also cut",
    "table-too-long": "no table has so many bytes",
    "table-stored-over-raw": "no frame is longer than what it holds: also R10",
    "varint-11-bytes": "what has eleven digits of zeros is also spelt too long",
    "frequenc*": "other sums are other slots, so other symbols",
    "shared-blob-cut": "a byte that is missing is not there to be read",
    "shared-number-over-64-bits": "there is no table of so large a number",
    "state-too-*": "another state is another symbol",
    "words-too-many": "more words than numbers can take are not used up",
    "raw-bits-too-many": "more bits than numbers can take are not used up",
    "sparse-more-than-all": "the gaps are as many as they are",
    "sparse-one-less": "the gaps are as many as they are",
    "sparse-gaps-too-*": "with bytes too few or too many, bits are missing or bytes unused",
}
"""Chunks that cannot be broken in one way only, and why."""


def excuse(name: str) -> str | None:
    """The pattern in `TWICE` that a chunk falls under."""
    return next((pattern for pattern in TWICE if fnmatchcase(name, pattern)), None)


@pytest.mark.parametrize("pattern", TWICE)
def test_excuses_are_needed(pattern: str) -> None:
    assert any(excuse(name) == pattern and len(faults_of(name)) > 1 for name in INVALID)


@pytest.mark.parametrize("name", INVALID)
def test_invalid_chunk_has_one_fault(name: str) -> None:
    faults = faults_of(name)
    assert faults and faults[0][0] == INVALID[name]["rule"]
    assert len(faults) == 1 or excuse(name) is not None, [(rule, SOURCE.read_text("utf-8").splitlines()[line - 1]) for rule, line in faults]


def checks() -> list[tuple[int, int, str]]:
    """First line, last line and text of every check of the decoder."""
    text = SOURCE.read_text("utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    found = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id in ("need", "unzstd")]
    return [(node.lineno, node.end_lineno or node.lineno, ast.get_source_segment(text, node) or "") for node in found]


@pytest.mark.parametrize(("first", "last"), [pytest.param(*row[:2], id=row[2][:70]) for row in checks()])
def test_check_has_a_chunk(first: int, last: int) -> None:
    """Some chunk runs into each check first: a decoder that lacks it fails the vectors."""
    assert any(first <= faults_of(name)[0][1] <= last for name in INVALID)


def test_checks_are_found() -> None:
    assert len(checks()) > 40


def test_every_type_and_form_has_a_chunk() -> None:
    assert {vector["dtype"] for vector in VALID.values()} == BY_NAME.keys()
    assert {int(vector["chunk"][:2], 16) for vector in VALID.values() if vector["chunk"]} == {0, 1, 2, 3, 4}


def test_numbers_are_those_of_the_page() -> None:
    """The table of section 1 is the one of the package and of the decoder."""
    rows = re.findall(
        r"^\| ([^|]+) \| (\d+) \| (yes|no) \| (\d+) \| (\d+) \| (\d+) \| (\d+|-) \| (yes|no) \|$", PAGE.read_text("utf-8"), re.M
    )
    assert len(rows) == 10
    for types, width, *rest in rows:
        signed, shift, mask, head, stairs, far = (-1 if cell == "-" else {"yes": 1, "no": 0}.get(cell, cell) for cell in rest)
        expected = tuple(map(int, (width, signed, shift, mask, head, stairs, far)))
        of_size = next((dtype.name for dtype in BY_NAME.values() if dtype.itemsize * 8 == int(width) and dtype.name[0] in "iu"), "")
        for name in re.findall(r"`(\w+)`", types) or [of_size]:
            numbers = numbers_of(BY_NAME[name])
            assert (numbers.width, *numbers[2:]) == expected
            theirs = DECODER.FLOATS.get(name) or DECODER.OTHERS[BY_NAME[name].itemsize]
            assert tuple(map(int, theirs)) == expected


def test_example_of_the_page_is_a_vector() -> None:
    """The bytes of section 8 are those of the chunk `example`."""
    section = PAGE.read_text("utf-8").split("## 8.", 1)[1]
    rows = re.findall(r"^\| (`[0-9A-F][^|]*) \|", section, re.M)
    assert bytes.fromhex("".join(part for row in rows for part in re.findall(r"`([0-9A-F ]+)`", row))).hex() == VALID["example"]["chunk"]
