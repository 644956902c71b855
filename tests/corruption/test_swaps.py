"""Blobs that change places with all checksums made to fit: digests of tensors and files tell."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import chain, combinations, islice, product
from pathlib import Path
from typing import Any

from support.damage import Family, told
from support.laws import SHARE

from fuzz.packfile import Blob, Document, put_together, refs_of, settle_totals, take_apart

_APPLIED = ("verify --base", "apply", "apply a chain", "virtual folder", "live model")
"""Use cases that compare the digest of each restored tensor, as spec/04-reader-rules.md R12 has it."""
Place = tuple[Any, Any]


def parts_of(data: bytes) -> tuple[Document, list[tuple[Any, Any, str]]]:
    """A pack taken apart, and where its index holds blobs."""
    document = take_apart(data)
    assert document is not None
    rows = [row for row in refs_of(document.index) if isinstance(row[0], list) or isinstance(row[0].get(row[1]), Blob)]
    return document, rows


def swapped(one: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Packs in which two blobs for one use have changed places, or one is that of another pack of the base; of chunks, their streams."""
    _, rows = parts_of(one)
    _, theirs = parts_of(other)
    mine = [(number, row[2]) for number, row in enumerate(rows)]
    for (a, use), (b, as_) in combinations(mine, 2):
        document, places = parts_of(one)
        (holder, key, _), (second, name, _) = places[a], places[b]
        if use == as_ and holder[key] != second[name]:
            holder[key], second[name] = second[name], holder[key]
            yield "blobs within a pack", fitted(document)
    for (a, use), b in product(mine, range(len(theirs))):
        document, places = parts_of(one)
        taken = parts_of(other)[1][b]
        holder, key, _ = places[a]
        if use == taken[2] and taken[0][taken[1]] != holder[key]:
            holder[key] = copy.deepcopy(taken[0][taken[1]])
            yield "blobs of another pack", fitted(document)
    for a, b in product(range(len(rows)), range(len(theirs))):
        document, places = parts_of(one)
        blob, taken = places[a][0][places[a][1]], parts_of(other)[1][b]
        found = taken[0][taken[1]]
        for chunk, their in zip(blob.chunks or (), found.chunks or (), strict=False):
            if len(chunk.streams) == len(their.streams) and chunk != their:
                for number in range(len(chunk.streams)):
                    before = chunk.streams[number]
                    chunk.streams[number] = their.streams[number]
                    yield "streams of another pack", fitted(document)
                    chunk.streams[number] = before


def entries_swapped(one: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Packs in which some of what two entries say has changed places; all of it would make a right pack of another model."""
    for keys in (("terms",), ("exact",), ("terms", "digest"), ("digest",), ("stored",), ("blob",)):
        count = len(_rows(parts_of(one)[0]))
        for a, b in combinations(range(count), 2):
            document = parts_of(one)[0]
            first, second = _rows(document)[a], _rows(document)[b]
            if all(key in first and key in second for key in keys) and any(first[key] != second[key] for key in keys):
                for key in keys:
                    first[key], second[key] = second[key], first[key]
                yield f"what entries say: {', '.join(keys)}", fitted(document)


def _rows(document: Document) -> list[dict[str, Any]]:
    return [*document.index["tensors"], *(document.index.get("files") or ()), *document.index.get("containers", ())]


def fitted(document: Document) -> bytes:
    """The pack with all checksums, places, lengths, counts and the order of its parts made to fit; digests stay."""
    settle_totals(document.index)
    return put_together(document)


def test_digests_tell(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    pack, out = tmp_path / "pack.dpk", tmp_path / "out"
    for family in made:
        clean, other = (path.read_bytes() for path in family.packs)
        pack.write_bytes(fitted(parts_of(clean)[0]))
        wanted = {reader: told(reader, family, pack, out) for reader in _APPLIED if reader in family.readers}
        assert all(found is not None for found in wanted.values())
        step = max(1, round(4 / SHARE))
        for number, (what, data) in enumerate(islice(chain(swapped(clean, other), entries_swapped(clean, other)), 0, None, step)):
            pack.write_bytes(data)
            found = told("verify --base", family, pack, out)
            readers = [reader for reader in wanted if reader != "verify --base"]
            # One of the others, in turn, where there is an error to be seen: all of them compare the same digests.
            for reader in readers if found is not None else (readers[number % len(readers)],):
                result = told(reader, family, pack, out)
                same = result == wanted[reader]
                needless = reader in ("virtual folder", "live model")  # a model has no side files, a folder those that are asked for
                assert same if found is not None else result is None or (needless and same), (family.name, what, reader)
            tried[f"swapped, checksums made to fit: {what}: {'told' if found is None else 'same result'}"] += 1
