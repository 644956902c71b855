"""Packs in parts: the index of parts changed, the parts themselves, their order and number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import deltapack
from deltapack.format.reader import PackReader
from fuzz.bundles import Bundle
from fuzz.mutators.packs import changed_pack
from fuzz.mutators.streams import changed_bytes
from fuzz.mutators.values import changed_text
from fuzz.protocol import Scratch, Target
from fuzz.spec import reference_decoder
from fuzz.targets.vectors import agree, by_spec, vectors

__all__ = ["PARTS"]

_INDEX = "a.dpk.index.json"
_WORDS = (
    "a-00001-of-00002.dpk",
    "a-00002-of-00002.dpk",
    "a-00001-of-00001.dpk",
    "a.dpk",
    "deltapack-parts",
    "../a-00001-of-00001.dpk",
    "name",
    "size",
)


def seeds(folder: Path) -> Sequence[Bundle]:
    """Some vectors, cut into two to five parts."""
    return [_cut(pack, 2 + number % 4) for number, (_, pack, _) in enumerate(list(vectors())[::7])]


def _cut(pack: bytes, count: int) -> Bundle:
    size = -(-len(pack) // count)
    parts = [pack[start : start + size] for start in range(0, len(pack), size)]
    names = [f"a-{number:05d}-of-{len(parts):05d}.dpk" for number in range(1, len(parts) + 1)]
    spec = reference_decoder()
    try:
        frame, raw_length = spec.read_prologue(pack)
        pack_id = hashlib.sha256(spec.unzstd(frame, raw_length)).hexdigest()
    except spec.Invalid:
        pack_id = "0" * 64
    rows = [{"name": name, "size": len(part), "sha256": hashlib.sha256(part).hexdigest()} for name, part in zip(names, parts, strict=True)]
    index = {"format": "deltapack-parts", "version": 1, "pack_id": pack_id, "size": len(pack), "parts": rows}
    return {_INDEX: json.dumps(index).encode(), **dict(zip(names, parts, strict=True))}


def change(bundle: Bundle, rng: Random) -> Bundle:
    """Change the pack and cut it anew; or the index, a part, which digests may follow or not."""
    names = [name for name in bundle if name != _INDEX]
    way = rng.randrange(8)
    if way <= 1:
        return _cut(changed_pack(b"".join(bundle[name] for name in sorted(names)), rng, ("index", "blobs", "file")), rng.randrange(1, 7))
    if way <= 4:
        return {**bundle, _INDEX: changed_text(bundle[_INDEX], rng, (*_WORDS, *names))}
    new = dict(bundle)
    if not names:
        return new
    name = rng.choice(names)
    if way == 5:
        del new[name]
        return new
    new[name] = changed_bytes(bundle[name], rng, bundle[rng.choice(names)])
    if way == 6:
        return new
    try:
        index: Any = json.loads(bundle[_INDEX])
        for row in index["parts"]:
            if row["name"] == name:
                row |= {"size": len(new[name]), "sha256": hashlib.sha256(new[name]).hexdigest()}
        index["size"] = sum(row["size"] for row in index["parts"])
    except (ValueError, KeyError, TypeError):
        return new
    return {**new, _INDEX: json.dumps(index).encode()}


def check(scratch: Scratch) -> None:
    """The package and the specification agree, once all of it has been read; whatever way the pack is named."""
    path = scratch.inputs / _INDEX
    if not path.exists():
        return
    done, reader = scratch.attempt("open", lambda: PackReader(path))
    if done:
        reader.close()
    verified, error = scratch.attempt("verify", lambda: deltapack.verify(path, workers=1))
    said, rule = by_spec(lambda: reference_decoder().check_alone(path))
    if said != "unknown":
        agree("verify", verified, error, said, rule)
    scratch.attempt("by the name of the whole", lambda: PackReader(scratch.inputs / "a.dpk").close())


PARTS = Target("parts", "packs in parts", seeds, change, check, ("deltapack.format.parts",), "verify: done")
