"""The code of spec/codecs/chunk.md, which shows how to decode one chunk, gives what the vectors say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from test_vectors import INVALID, ROOT, VALID, VECTORS, Tensors, companion, reference, tensors
from vectors import scalar

from deltapack.format.codecs import INDEX_CODECS, VALUE_CODECS


def chunk_page() -> dict[str, Any]:
    """The functions of codecs/chunk.md, and what the page takes as given, from plain scalars."""

    def bits(raw: bytes, at: int, width: int) -> int:
        part = raw[at // 8 : (at + width) // 8 + 1]
        return int.from_bytes(part, "little") >> at % 8 & (1 << width) - 1

    def must(condition: object, rule: str) -> None:
        if not condition:
            raise reference.Invalid(rule, "refused")

    given: dict[str, Any] = {
        **{"bits": bits, "must": must, "f32": scalar.round_f32, "number": scalar.number, "convert": scalar.element},
        **{"philox": scalar.philox, "ceil_div": lambda a, b: -(-a // b), "isfinite": math.isfinite},
        **{"philox7": lambda b, t, key: scalar.philox(b, t, key, third=1, rounds=7)},
        **{"levels": lambda raw, n: [int(level) for level in reference.unpack_levels(raw, n)]},
        **{"TILE": reference.TILE, "CHUNK": reference.CHUNK, "GROUPED": reference.GROUPED},
        "BITS": {row.name: row.bits for row in VALUE_CODECS.values()},
    }
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "spec" / "codecs" / "chunk.md").read_text("utf-8"), re.S):
        exec(code, given)
    return given


def by_the_page(name: str, base: Tensors) -> dict[str, list[int]]:
    """The elements that terms cover of each tensor of a pack of single chunks, as codecs/chunk.md computes them."""
    page, pack = chunk_page(), reference.read_pack(VECTORS / name)
    base, out = reference.with_arranged([pack], base), {}
    for entry in (entry for entry in pack["index"]["tensors"] if entry.get("terms")):
        source, _, raw = base[reference.base_of(entry)[0]]
        size, common = reference.ITEMSIZE[source], reference.common_numel(entry)
        lengths = [b - a for a, b in reference.spans(common, reference.TILE)]
        terms = [found for term in entry["terms"] for found in term_by_the_page(page, pack["data"], term, entry)]
        elements = [int.from_bytes(raw[i * size : (i + 1) * size], "little") for i in range(common)]
        out[entry["name"]] = page["add"](elements, source, entry["dtype"], lengths, terms)
    return out


def term_by_the_page(page: dict[str, Any], data: bytes, term: dict[str, Any], entry: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Positions, by tile, and values of the chunks of a term."""
    common, shape, factor = reference.common_numel(entry), reference.matrix_of(entry), reference.f32_of_bits(term["factor"])
    lengths, lines = [b - a for a, b in reference.spans(common, reference.TILE)], None
    if term["values"] == "factors":
        raw_length = term["rank"] * (8 + sum(-(-size * term["bits"] // 8) for size in shape))
        raw = reference.unstream(reference.plain_blob(data, term["blob"]), raw_length)
        yield [range(length) for length in lengths], page["factor_values"](term, *shape, raw, range(common), factor)
        return
    if "lines" in term:
        raw = reference.unstream(reference.plain_blob(data, term["lines"]), shape[0] + shape[1] * (term["scales"] == "outer"))
        rows, columns = page["lines_of"](term, *shape, raw)
        lines = SimpleNamespace(width=shape[1], rows=rows, columns=columns)
    has_index, has_scales = term["index"] in ("gaps", "bitmap"), term["values"] in reference.GROUPED and "scales" not in term
    for chunk in reference.read_chunks(data, term["blob"], common, 1 + has_index + has_scales, term["nnz"]):
        bounds = page["raw_lengths"](term, chunk["counts"], lengths)
        assert len(bounds) == 1 + has_index + has_scales
        for (least, most), (_, length) in zip(bounds, chunk["streams"], strict=True):
            page["must"](least <= length <= most, "R8")
        raws = [reference.unstream(*stream) for stream in chunk["streams"]]
        kept = page["positions"](term, 0, chunk["counts"], lengths, raws[0], lines)
        scales = raws[-1] if has_scales else b""
        yield kept, page["values"](term, 0, kept, chunk["counts"], raws[has_index], scales, lines, factor)


def has_terms(name: str) -> bool:
    """Whether a valid vector has terms, all of single chunks."""
    entries = reference.read_pack(VECTORS / f"{name}.dpk")["index"]["tensors"]
    return "chunks" not in name and any(entry.get("terms") for entry in entries)


def test_vectors_are_found() -> None:
    """Every codec is among the vectors below."""
    assert {f"v1-ok-index-{codec}" for codec in INDEX_CODECS} <= set(WITH_TERMS)
    assert {f"v1-ok-values-{codec}" for codec in VALUE_CODECS} <= set(WITH_TERMS)


# The page's loops take most of a minute for a rank of 256; the reference decoder reads that vector, too.
WITH_TERMS = [name for name in VALID if has_terms(name) and name != "v1-ok-factors-rank-256"]


@pytest.mark.parametrize("name", WITH_TERMS)
def test_chunk_page_restores_vectors(name: str) -> None:
    """The code of codecs/chunk.md gives the expected elements."""
    document = companion(f"{name}.json")
    result = tensors(document["result"])
    for tensor, found in by_the_page(f"{name}.dpk", tensors(document["base"])).items():
        dtype, _, raw = result[tensor]
        size = reference.ITEMSIZE[dtype]
        assert b"".join(word.to_bytes(size, "little") for word in found) == raw[: len(found) * size]


OF_TERMS = sorted(
    name for name in INVALID if name.startswith("v1-bad-R9-") and not any(word in name for word in ("digests", "-exact-", "-container-"))
)
"""Vectors of R9 whose fault is in the chunks of a term."""


@pytest.mark.parametrize("name", OF_TERMS)
def test_chunk_page_refuses_vectors(name: str) -> None:
    """The code of codecs/chunk.md refuses streams that break R9."""
    with pytest.raises(reference.Invalid) as caught:
        by_the_page(name, tensors(companion(INVALID[name]["base"])["base"]))
    assert caught.value.rule == "R9"
