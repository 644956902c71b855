"""The code of spec/codecs/chunk.md, which shows how to decode one chunk, gives what the vectors say."""

from __future__ import annotations

import math
import re
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
        **{"TILE": reference.TILE, "CHUNK": reference.CHUNK, "SCALED": reference.SCALED},
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
        terms = []
        for term in entry["terms"]:
            has_index = term["index"] in ("gaps", "bitmap")
            streams = 1 + has_index + (term["values"] in reference.SCALED)
            for chunk in reference.read_chunks(pack["data"], term["blob"], common, streams, term["nnz"]):
                bounds = page["raw_lengths"](term, chunk["counts"], lengths)
                assert len(bounds) == streams
                for (least, most), (_, length) in zip(bounds, chunk["streams"], strict=True):
                    page["must"](least <= length <= most, "R8")
                raws = [reference.unstream(*stream) for stream in chunk["streams"]]
                kept = page["positions"](term, 0, chunk["counts"], lengths, raws[0])
                factor = reference.f32_of_bits(term["factor"])
                scales = raws[-1] if term["values"] in reference.SCALED else b""
                terms.append((kept, page["values"](term, chunk["counts"], raws[has_index], scales, factor)))
        elements = [int.from_bytes(raw[i * size : (i + 1) * size], "little") for i in range(common)]
        out[entry["name"]] = page["add"](elements, source, entry["dtype"], lengths, terms)
    return out


def has_terms(name: str) -> bool:
    """Whether a valid vector has terms, all of single chunks."""
    entries = reference.read_pack(VECTORS / f"{name}.dpk")["index"]["tensors"]
    return "chunks" not in name and any(entry.get("terms") for entry in entries)


def test_vectors_are_found() -> None:
    """Every codec is among the vectors below."""
    assert {f"v1-ok-index-{codec}" for codec in INDEX_CODECS} <= set(WITH_TERMS)
    assert {f"v1-ok-values-{codec}" for codec in VALUE_CODECS} <= set(WITH_TERMS)


WITH_TERMS = [name for name in VALID if has_terms(name)]


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
