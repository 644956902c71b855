"""A pack in parts: bits of the parts and of their index, parts that are cut, missing or in each other's place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support.damage import Family, told
from support.laws import SHARE

import deltapack
from deltapack.errors import DeltapackError


def test_bits(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    family = next(family for family in made if family.name == "budget")
    whole = tmp_path / "parts" / "pack.dpk"
    whole.parent.mkdir()
    deltapack.split(family.packs[0], whole, max_part_size=700)
    index, wanted = whole.with_name("pack.dpk.index.json"), told("apply", family, whole, tmp_path / "out")
    files = sorted(whole.parent.iterdir())
    assert len(files) > 3 and wanted is not None
    step = max(1, round(2 / SHARE))
    for path in files:
        clean = path.read_bytes()
        for place in range(0, len(clean), 1 if path == index else step):
            damaged = bytearray(clean)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            assert told("verify", family, whole, tmp_path / "out") is None, (path, place)
            if place % 40 == 0:
                # `apply` compares what it reads and what it makes, so digests of parts are for `verify` alone.
                assert told("apply", family, whole, tmp_path / "out") in (None, wanted)
            tried["bits flipped of parts and their index"] += 1
        path.write_bytes(clean)


def test_parts_cut_gone_and_exchanged(made: list[Family], tmp_path: Path, tried: Counter[str]) -> None:
    family = next(family for family in made if family.name == "budget")
    whole = tmp_path / "parts" / "pack.dpk"
    whole.parent.mkdir()
    deltapack.split(family.packs[0], whole, max_part_size=400)
    rows = json.loads(whole.with_name("pack.dpk.index.json").read_text())["parts"]
    parts = [whole.with_name(row["name"]) for row in rows]
    one, other = parts[1], parts[2]
    content, theirs = one.read_bytes(), other.read_bytes()
    for changed in ({one: theirs, other: content}, {one: content[:-1]}, {one: content + b"\0"}, {one: b""}, {one: None}):
        for path, data in changed.items():
            path.unlink() if data is None else path.write_bytes(data)
        for act in (deltapack.verify, lambda pack: deltapack.apply(family.base, pack, tmp_path / "out")):
            with pytest.raises(DeltapackError):
                act(whole)
        tried["parts cut, prolonged, gone, exchanged"] += 1
        one.write_bytes(content)
        other.write_bytes(theirs)
    deltapack.verify(whole)
